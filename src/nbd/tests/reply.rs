//! Reassembly of replies: any way to cut a read into chunks and shuffle them is taken, any byte too few or too many is not.

use proptest::prelude::*;

use super::script::{chunk, simple};
use crate::nbd::rehearsal::rehearse;
use crate::nbd::reply::{Step, Table};
use crate::nbd::wire::{Body, Command, Event};

const START: u64 = 1 << 20;
const LEN: u64 = 64 << 10;

/// Chunks that cover the read, each data or hole, shuffled.
fn chunks() -> impl Strategy<Value = Vec<(u64, u32, bool)>> {
    prop::collection::btree_set(1..LEN / 16, 0..40)
        .prop_flat_map(|cuts| {
            let edges: Vec<u64> = [0].into_iter().chain(cuts.into_iter().map(|c| c * 16)).chain([LEN]).collect();
            let ranges: Vec<_> = edges.windows(2).map(|w| (START + w[0], (w[1] - w[0]) as u32)).collect();
            let kinds = prop::collection::vec(any::<bool>(), ranges.len());
            (Just(ranges), kinds)
        })
        .prop_map(|(ranges, kinds)| ranges.into_iter().zip(kinds).map(|((o, l), k)| (o, l, k)).collect::<Vec<_>>())
        .prop_shuffle()
}

/// Feeds the chunks as replies to one read; whether the read was settled without complaint.
fn feed(chunks: &[(u64, u32, bool)]) -> bool {
    let mut table = Table::new(true, vec![]);
    let slot = table.open(Command::Read, START..START + LEN).unwrap();
    let cookie = table.cookie(slot);
    let mut covered = 0;
    for (i, (offset, len, data)) in chunks.iter().copied().enumerate() {
        let done = i + 1 == chunks.len();
        let body = if data { Body::Data { offset, len } } else { Body::Hole { offset, len } };
        let step = match table.apply(Event { cookie, done, body }) {
            Ok(Step::Payload(p)) => {
                covered += p.range.end - p.range.start;
                table.payload_read(&p)
            }
            other => other,
        };
        match step {
            Ok(Step::Settled(s)) => {
                let holes: u64 = table.take(s).holes.iter().map(|h| h.end - h.start).sum();
                assert_eq!(covered + holes, LEN);
                return done;
            }
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_exactly_once(chunks in chunks(), victim in any::<prop::sample::Index>(), shift in 1u64..2000) {
        prop_assert!(feed(&chunks));
        let at = victim.index(chunks.len());
        let mut missing = chunks.clone();
        missing.remove(at);
        prop_assert!(!feed(&missing));
        let mut twice = chunks.clone();
        twice.insert(0, chunks[at]);
        prop_assert!(!feed(&twice));
        let mut moved = chunks.clone();
        moved[at].0 += shift;
        prop_assert!(!feed(&moved));
        let mut short = chunks.clone();
        if short[at].1 > 1 {
            short[at].1 -= 1;
            prop_assert!(!feed(&short));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cookie in 0u64..80, kind in 0u16..8) {
        drop(rehearse(&bytes));
        drop(rehearse(&[&[1][..], &chunk(cookie, true, kind, &bytes)].concat()));
        drop(rehearse(&[&[1][..], &chunk(cookie, false, kind | 0x8000, &bytes)].concat()));
    }
}

#[test]
fn slots_are_bounded_and_cookies_are_not_used_twice() {
    let mut table = Table::new(false, vec![]);
    let slots: Vec<usize> = (0..16).map(|_| table.open(Command::Flush, 0..0).unwrap()).collect();
    let cookies: Vec<u64> = slots.iter().map(|s| table.cookie(*s)).collect();
    assert_eq!(table.open(Command::Flush, 0..0), None);
    let ok = |cookie| Event { cookie, done: true, body: Body::Simple };
    assert_eq!(table.apply(ok(cookies[3])).unwrap(), Step::Settled(3));
    assert!(table.apply(ok(cookies[3])).is_err());
    table.take(3);
    assert_eq!(table.open(Command::Flush, 0..0), Some(3));
    assert!(table.apply(ok(cookies[3])).is_err());
}

/// Cookies in [`rehearse`]: serial number times 16 plus slot.
#[test]
fn a_rehearsal_can_succeed() {
    let mut bytes = vec![1];
    let hole = |offset: u64, len: u32| [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat();
    bytes.extend(chunk(33, true, 2, &hole(8192, (1 << 20) - 8192)));
    bytes.extend(chunk(16, true, 1, &[&4096u64.to_be_bytes()[..], &[9; 4096]].concat()));
    bytes.extend(simple(67, 0));
    bytes.extend(chunk(50, false, 5, &[1u32, 4096, 0].map(u32::to_be_bytes).concat()));
    bytes.extend(chunk(50, true, 5, &[7u32, 4096, 3].map(u32::to_be_bytes).concat()));
    assert_eq!(rehearse(&bytes).unwrap(), 4);
}

/// What the fuzzer found worth keeping must never panic again.
#[test]
fn the_corpus_of_the_fuzz_target() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/nbd_reply");
    let mut seen = 0;
    for file in std::fs::read_dir(corpus).unwrap() {
        drop(rehearse(&std::fs::read(file.unwrap().path()).unwrap()));
        seen += 1;
    }
    assert!(seen > 0);
}
