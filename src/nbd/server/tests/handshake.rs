//! The handshake and single requests, byte by byte.

use super::rehearsal::rehearse;
use super::*;

pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = b"IHAVEOPT".to_vec();
    out.extend(option.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

pub fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

/// The data of GO and INFO.
pub fn asks(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut out = string(name);
    out.extend((infos.len() as u16).to_be_bytes());
    infos.iter().for_each(|info| out.extend(info.to_be_bytes()));
    out
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut out = string(name);
    out.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| out.extend(string(query)));
    out
}

pub fn request(kind: u16, flags: u16, offset: u64, len: u32) -> Vec<u8> {
    let mut out = vec![0x25, 0x60, 0x95, 0x13];
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(7u64.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(len.to_be_bytes());
    out
}

/// What the server answers to these options, after its greeting: option, kind, data of each reply.
fn answers(options: &[Vec<u8>]) -> Vec<(u32, u32, Vec<u8>)> {
    // An abort ends the talk in order.
    let input = [&[0, 0, 0, 3][..], &options.concat(), &option(2, &[])].concat();
    let (_, sent) = rehearse(&input).unwrap();
    assert_eq!(&sent[..18], b"NBDMAGICIHAVEOPT\x00\x03");
    let (mut rest, mut replies) = (&sent[18..], Vec::new());
    while !rest.is_empty() {
        let number = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().unwrap());
        assert_eq!(&rest[..8], 0x0003_e889_0455_65a9u64.to_be_bytes());
        let len = number(16) as usize;
        replies.push((number(8), number(12), rest[20..20 + len].to_vec()));
        rest = &rest[20 + len..];
    }
    assert_eq!(replies.pop(), Some((2, 1, vec![])));
    replies
}

fn kinds(options: &[Vec<u8>]) -> Vec<u32> {
    answers(options).into_iter().map(|(_, kind, _)| kind).collect()
}

const UNSUP: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const UNKNOWN: u32 = 0x8000_0006;
const TOO_BIG: u32 = 0x8000_0009;

#[test]
fn options_are_answered_or_refused_in_the_words_of_the_protocol() {
    let list = answers(&[option(3, &[])]);
    assert_eq!(list, [(3, 2, b"\0\0\0\x01aa disk".to_vec()), (3, 2, b"\0\0\0\x01b".to_vec()), (3, 1, vec![])]);
    assert_eq!(kinds(&[option(3, b"x")]), [INVALID]);
    // TLS, extended headers, and what does not exist.
    for number in [5, 11, 4, 0, 77, u32::MAX] {
        assert_eq!(kinds(&[option(number, b"")]), [UNSUP], "{number}");
    }
    assert_eq!(kinds(&[option(8, b"x"), option(8, b"")]), [INVALID, 1]);
    assert_eq!(kinds(&[option(77, &vec![0; 70_000])]), [TOO_BIG]);
    assert_eq!(kinds(&[option(6, &asks("none", &[]))]), [UNKNOWN]);
    assert_eq!(kinds(&[option(6, &asks("b", &[])[..4])]), [INVALID]);
    assert_eq!(kinds(&[option(6, &[&asks("b", &[3])[..], b"x"].concat())]), [INVALID]);
    assert_eq!(kinds(&[option(6, &[0xff, 0xff, 0xff, 0xff, b'b', 0, 0])]), [INVALID]);
    assert_eq!(kinds(&[option(6, &[0, 0, 0, 1, 0xff, 0, 0])]), [UNKNOWN]);
}

#[test]
fn what_is_told_of_an_export() {
    let size = (3u64 << 18).to_be_bytes();
    let export = |flags: u16| [&[0, 0][..], &size, &flags.to_be_bytes()].concat();
    let blocks = b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0".to_vec();
    let info = answers(&[option(6, &asks("a", &[1, 2, 3]))]);
    // Has flags, read-only, flush, several connections.
    let expected = [export(0x107), b"\0\x01a".to_vec(), b"\0\x02a disk".to_vec(), blocks.clone()];
    assert_eq!(info[..4], expected.map(|data| (6, 3, data)));
    assert_eq!(info[4], (6, 1, vec![]));
    // By another name, and by none; with structured replies also reads in one piece.
    for name in ["disk", "", "b"] {
        let info = answers(&[option(8, &[]), option(6, &asks(name, &[1]))]);
        let expected = [export(0x1ed), b"\0\x01b".to_vec(), blocks.clone()];
        assert_eq!(info[1..4], expected.map(|data| (6, 3, data)), "{name:?}");
    }
}

#[test]
fn meta_contexts() {
    let (list, set) = (|q: &[&str]| option(9, &contexts("a", q)), |q: &[&str]| option(10, &contexts("a", q)));
    assert_eq!(kinds(&[list(&[])]), [INVALID], "structured replies come first");
    let with = |o: Vec<u8>| answers(&[option(8, &[]), o])[1..].to_vec();
    let offered = |option: u32, id: u8| (option, 4, [&[0, 0, 0, id], BASE_ALLOCATION.as_bytes()].concat());
    for queries in [&[][..], &["base:"], &["qemu:", "base:allocation"]] {
        assert_eq!(with(list(queries)), [offered(9, 0), (9, 1, vec![])], "{queries:?}");
    }
    assert_eq!(with(set(&["base:allocation"])), [offered(10, 1), (10, 1, vec![])]);
    for queries in [&[][..], &["base:"], &["qemu:allocation-depth"]] {
        assert_eq!(with(set(queries)), [(10, 1, vec![])], "{queries:?}");
    }
    assert_eq!(with(option(10, &contexts("none", &["base:allocation"])))[0].1, UNKNOWN);
    assert_eq!(with(option(10, &[&contexts("a", &["x"])[..], b"y"].concat()))[0].1, INVALID);
    assert_eq!(with(option(10, &[&string("a")[..], &[0xff; 4]].concat()))[0].1, INVALID);
}

/// Options and requests, and what comes after the last option's reply.
fn transmission(structured: bool, name: &str, context: bool, requests: &[Vec<u8>]) -> (usize, Vec<u8>) {
    let mut input = vec![0, 0, 0, 3];
    if structured {
        input.extend(option(8, &[]));
    }
    if context {
        input.extend(option(10, &contexts(name, &["base:allocation"])));
    }
    input.extend(option(7, &asks(name, &[])));
    let (_, before) = rehearse(&input).unwrap();
    input.extend(requests.concat());
    let (answered, sent) = rehearse(&input).unwrap();
    assert_eq!(sent[..before.len()], before);
    (answered, sent[before.len()..].to_vec())
}

/// The error number in the first reply.
#[track_caller]
fn errno(structured: bool, name: &str, context: bool, words: Vec<u8>) -> u32 {
    let (answered, sent) = transmission(structured, name, context, &[words]);
    assert_eq!(answered, 1);
    match sent[..4] {
        [0x67, 0x44, 0x66, 0x98] => u32::from_be_bytes(sent[4..8].try_into().unwrap()),
        _ if sent[6] & 0x80 != 0 => u32::from_be_bytes(sent[20..24].try_into().unwrap()),
        _ => 0,
    }
}

#[test]
fn requests_that_make_no_sense() {
    const SIZE: u64 = 3 << 18;
    for structured in [false, true] {
        let fails = |name, words| errno(structured, name, false, words);
        assert_eq!(fails("a", request(0, 0, SIZE - 1, 2)), 22);
        assert_eq!(fails("a", request(0, 0, u64::MAX, 2)), 22);
        assert_eq!(fails("a", request(0, 0, 0, u32::MAX)), 22);
        assert_eq!(fails("a", request(0, 1 << 9, 0, 512)), 22);
        assert_eq!(fails("a", request(5, 0, 0, 512)), 22);
        assert_eq!(fails("a", request(0xffff, 0, 0, 512)), 22);
        assert_eq!(fails("a", request(7, 0, 0, 512)), 22, "no context was chosen");
        // Read-only: also a write, whose payload is swallowed.
        assert_eq!(fails("a", [request(1, 0, 0, 512), vec![1; 512]].concat()), 1);
        assert_eq!(fails("a", request(4, 0, 0, 512)), 1);
        assert_eq!(fails("a", request(6, 0, 0, 512)), 1);
        assert_eq!(fails("b", [request(1, 0, SIZE - 511, 512), vec![1; 512]].concat()), 28);
        assert_eq!(fails("b", request(6, 0, SIZE, 1)), 28);
        assert_eq!(fails("b", request(4, 0, SIZE, 1)), 22);
        for fine in [request(3, 0, 0, 0), request(3, 1, u64::MAX, 9), request(0, 0, SIZE, 0), request(4, 1, 0, 512)] {
            assert_eq!(fails("b", fine), 0);
        }
        assert_eq!(fails("b", request(6, 3, 0, 512)), 0);
    }
    // One chunk of a piece, not of more.
    assert_eq!(errno(true, "a", false, request(0, 4, 0, 256 << 10)), 0);
    assert_eq!(errno(true, "a", false, request(0, 4, 0, (256 << 10) + 1)), 75);
    assert_eq!(errno(false, "a", false, request(0, 4, 0, 512)), 22);
    assert_eq!(errno(true, "a", true, request(7, 0, 0, 0)), 22);
    assert_eq!(errno(true, "a", true, request(7, 8, 0, 512)), 0);
}

#[test]
fn replies_byte_by_byte() {
    // Without chunks: magic, no error, cookie, data.
    let (_, sent) = transmission(false, "a", false, &[request(0, 0, 0, 5)]);
    assert_eq!(sent, [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7][..], b"first"].concat());
    let (_, sent) = transmission(false, "a", false, &[request(0, 0, 0, 700_000)]);
    assert_eq!(sent.len(), 16 + 700_000);
    let head = |last: u8, kind: u8, len: u32| {
        let head = [0x66, 0x8e, 0x33, 0xef, 0, last, 0, kind, 0, 0, 0, 0, 0, 0, 0, 7];
        [&head[..], &len.to_be_bytes()].concat()
    };
    let (_, sent) = transmission(true, "a", false, &[request(0, 0, 1, 4)]);
    assert_eq!(sent, [&head(1, 1, 12)[..], &1u64.to_be_bytes(), b"irst"].concat());
    // A read of data and a hole behind it.
    let (_, sent) = transmission(true, "a", false, &[request(0, 0, 0, 100_000)]);
    let mut expected = [&head(0, 1, 4104)[..], &0u64.to_be_bytes(), b"first"].concat();
    expected.resize(expected.len() + 4091, 0);
    expected.extend([&head(1, 2, 12)[..], &4096u64.to_be_bytes(), &95_904u32.to_be_bytes()].concat());
    assert_eq!(sent, expected);
    // Status: all, and only the first.
    let status = |flags| transmission(true, "a", true, &[request(7, flags, 0, 10_000)]).1;
    let numbers = |n: &[u32]| n.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<_>>();
    assert_eq!(status(0), [head(1, 5, 20), numbers(&[1, 4096, 0, 5904, 3])].concat());
    assert_eq!(status(8), [head(1, 5, 12), numbers(&[1, 4096, 0])].concat());
}

#[test]
fn the_oldest_way_to_choose() {
    for (flags, zeroes) in [(3u8, 0), (1, 124)] {
        let (_, sent) = rehearse(&[&[0, 0, 0, flags][..], &option(1, b"a"), &request(2, 0, 0, 0)].concat()).unwrap();
        let expected = [&(3u64 << 18).to_be_bytes()[..], &[1, 7], &vec![0; zeroes]].concat();
        assert_eq!(sent[18..], expected);
    }
    assert!(rehearse(&[&[0, 0, 0, 3][..], &option(1, b"none")].concat()).is_err());
}

/// What the fuzzer found worth keeping must never panic again.
#[test]
fn the_corpus_of_the_fuzz_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/nbd_request");
    let (mut seen, mut answered) = (0, 0);
    for file in std::fs::read_dir(corpus).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        answered += rehearse(&bytes).map_or(0, |(answered, _)| answered);
        seen += 1;
    }
    assert!(seen > 5 && answered > 5, "{seen} files, {answered} answers");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 100, ..Default::default() })]

    #[test]
    fn no_bytes_make_it_panic(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..120),
        kind in 0u16..9, flags in 0u16..32, at in 0u64..1 << 21, len in 0u32..1 << 21, number in 0u32..13,
    ) {
        drop(rehearse(&bytes));
        drop(rehearse(&[&[0, 0, 0, 3][..], &option(8, &[]), &option(number, &bytes), &bytes].concat()));
        let chosen = [&[0, 0, 0, 3][..], &option(8, &[]), &option(7, &asks("b", &[]))].concat();
        drop(rehearse(&[&chosen[..], &request(kind, flags, at, len), &bytes, &request(3, 0, 0, 0)].concat()));
    }
}

/// Writes the seeds of the fuzz target: one file for each thing worth starting from.
#[test]
#[ignore = "writes fuzz/corpus/nbd_request anew"]
fn write_seeds() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/nbd_request");
    std::fs::create_dir_all(&dir).unwrap();
    let start = [&[0, 0, 0, 3][..], &option(8, &[]), &option(10, &contexts("b", &["base:allocation"]))].concat();
    let go = |name: &str| option(7, &asks(name, &[1, 2, 3]));
    let write = [request(1, 1, 5000, 600), vec![9; 600]].concat();
    let long = [request(1, 0, 100, 270_000), vec![9; 270_000]].concat();
    let all = [request(0, 0, 0, 100_000), write.clone(), request(6, 2, 4096, 9000), request(4, 0, 0, 512)].concat();
    for (name, parts) in [
        ("all_commands", vec![start.clone(), go("b"), all, request(7, 0, 0, 700_000), request(3, 0, 0, 0)]),
        ("read_only", vec![start.clone(), go("a"), write, request(0, 4, 0, 512), request(2, 0, 0, 0)]),
        ("simple", vec![vec![0, 0, 0, 3], go(""), request(0, 0, 0, 700_000), request(9, 0, 0, 1)]),
        ("long_write", vec![start.clone(), go("disk"), long, request(0, 0, 0, 1 << 18)]),
        ("export_name", vec![vec![0, 0, 0, 1], option(1, b"a"), request(0, 0, 0, 5)]),
        (
            "list_and_info",
            vec![start.clone(), option(3, &[]), option(6, &asks("a", &[1])), option(9, &contexts("a", &[]))],
        ),
        (
            "refused",
            vec![start.clone(), option(77, b"x"), option(5, &[]), option(6, &asks("none", &[])), option(2, &[])],
        ),
        ("out_of_range", vec![start.clone(), go("b"), request(0, 0, u64::MAX, 9), request(7, 8, 1 << 19, 1 << 30)]),
        ("huge_write", vec![start.clone(), go("b"), request(1, 0, 0, u32::MAX)]),
        ("huge_option", vec![vec![0, 0, 0, 3], b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff".to_vec()]),
    ] {
        std::fs::write(dir.join(name), parts.concat()).unwrap();
    }
}
