use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;

use super::table::{TableBuilder, entries};
use super::*;
use crate::archive::FirstPass;
use crate::archive::frame::{Container, Frame, IndexBuilder, Packer, TAR_ID};
use crate::host::{Cancel, Host};

/// An archive made by hand.
#[derive(Default, Clone)]
struct Hand(Vec<u8>);

impl Hand {
    fn raw(mut self, block: &[u8]) -> Self {
        self.0.extend_from_slice(block);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    fn member(self, flag: u8, name: &str, link: &str, data: &[u8]) -> Self {
        self.raw(&header(flag, name.as_bytes(), link.as_bytes(), data.len() as u64)).raw(data)
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.member(b'0', name, "", data)
    }

    fn dir(self, name: &str) -> Self {
        self.member(b'5', name, "", b"")
    }

    fn symlink(self, name: &str, to: &str) -> Self {
        self.member(b'2', name, to, b"")
    }

    fn hard_link(self, name: &str, to: &str) -> Self {
        self.member(b'1', name, to, b"")
    }

    fn pax(self, flag: u8, records: &[(&str, &str)]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            let mut len = rest.len() + 1;
            while len.to_string().len() + rest.len() != len {
                len += 1;
            }
            text.extend_from_slice(format!("{len}{rest}").as_bytes());
        }
        self.member(flag, "././@PaxHeader", "", &text)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

fn header(flag: u8, name: &[u8], link: &[u8], size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = flag;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    sum(block)
}

fn sum(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

/// All members, read in pieces of `piece` bytes.
fn walk_in(tar: &[u8], piece: usize) -> Result<Vec<Member>, TarError> {
    let (mut walker, mut members) = (Walker::new(), Vec::new());
    for part in tar.chunks(piece) {
        walker.feed(part, &mut |member| {
            members.push(member);
            Ok(())
        })?;
    }
    walker.finish()?;
    Ok(members)
}

fn walk(tar: &[u8]) -> Result<Vec<Member>, TarError> {
    let members = walk_in(tar, usize::MAX);
    let same = format!("{members:?}");
    for piece in [1, 511, 513] {
        assert_eq!(format!("{:?}", walk_in(tar, piece)), same, "in pieces of {piece}");
    }
    members
}

fn vet(tar: &[u8], devices: bool) -> Result<(), TarError> {
    let mut vetting = Vetting::new(Rules { devices });
    let (mut walker, mut check) = (Walker::new(), |member: Member| vetting.check(&member));
    walker.feed(tar, &mut check)?;
    walker.finish()
}

fn refused(archive: Hand) -> String {
    let error = vet(&archive.end(), false).unwrap_err();
    assert!(matches!(error, TarError::Refused { .. }), "{error}");
    error.to_string()
}

#[test]
fn names_and_sizes_of_all_formats() {
    let gnu_name = "g".repeat(4000);
    let mut prefixed = header(b'0', b"name", b"", 3);
    prefixed[345..351].copy_from_slice(b"prefix");
    let mut v7 = header(0, b"old", b"", 5);
    v7[257..265].fill(0);
    let mut huge = header(b'0', b"huge", b"", 0);
    huge[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    let archive = Hand::default()
        .dir("./")
        .raw(&sum(v7))
        .raw(b"12345")
        .raw(&sum(prefixed))
        .raw(b"abc")
        .member(b'L', "././@LongLink", "", &[gnu_name.as_bytes(), b"\0"].concat())
        .member(b'K', "././@LongLink", "", &[b"k".repeat(900).as_slice(), b"\0"].concat())
        .symlink("short", "short")
        .raw(&sum(huge))
        .raw(b"7 bytes")
        .pax(b'g', &[("comment", "everywhere")])
        .pax(b'x', &[("path", "from\npax"), ("size", "4"), ("SCHILY.xattr.user.a", "v")])
        .file("ignored", b"")
        .raw(b"four")
        .file("slash/", b"")
        .member(b'6', "fifo", "", b"")
        .hard_link("again", "old")
        .end();
    let members = walk(&archive).unwrap();
    let found: Vec<_> = members.iter().map(|m| (printable(&m.path), m.kind, m.size)).collect();
    let wanted = [
        ("./", Kind::Directory, 0),
        ("old", Kind::File, 5),
        ("prefix/name", Kind::File, 3),
        (&printable(gnu_name.as_bytes()), Kind::Symlink, 0),
        ("huge", Kind::File, 7),
        ("from\\npax", Kind::File, 4),
        ("slash/", Kind::Directory, 0),
        ("fifo", Kind::Fifo, 0),
        ("again", Kind::HardLink, 0),
    ];
    assert_eq!(found, wanted.map(|(name, kind, size)| (name.to_owned(), kind, size)));
    assert_eq!((members[3].path.len(), members[3].link.len()), (4000, 900));
    assert_eq!(&archive[members[5].data as usize..][..4], b"four");
    assert_eq!((members[8].link.as_slice(), members[1].offset, members[1].data), (&b"old"[..], 512, 1024));
}

#[test]
fn broken_headers_are_told_with_their_offset() {
    let good = Hand::default().file("a", b"data");
    let damage = |offset: u64, archive: Vec<u8>| match walk(&archive).unwrap_err() {
        TarError::Damaged { offset: at, what } => {
            assert_eq!(at, offset, "{what}");
            what
        }
        other => panic!("{other}"),
    };
    let mut flipped = good.clone().file("b", b"").end();
    flipped[1024] ^= 1;
    assert!(damage(1024, flipped).contains("checksum"));
    let mut number = header(b'0', b"n", b"", 0);
    number[124..136].copy_from_slice(b"0000000000x\0");
    assert!(damage(1024, good.clone().raw(&sum(number)).end()).contains("no number"));
    let mut negative = header(b'0', b"n", b"", 0);
    negative[124..136].fill(0xff);
    assert!(damage(1024, good.clone().raw(&sum(negative)).end()).contains("no number"));
    let mut endless = header(b'0', b"n", b"", 0);
    endless[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert!(damage(1024, good.clone().raw(&sum(endless)).end()).contains("says it has"));
    let junk = [good.clone().end(), b"\0\0\0junk".to_vec()].concat();
    assert!(damage(2048 + 3, junk).contains("there is more behind the mark"));
    assert!(damage(1024, good.clone().symlink("", "x").end()).contains("without a name"));
    assert!(damage(1024, good.clone().member(b'2', "s", "t", b"data").end()).contains("4 bytes of data"));
    assert!(damage(1024, good.clone().member(b'1', "s", "t", b"data").end()).contains("4 bytes of data"));
    assert!(damage(1024, good.clone().member(b'g', "g", "", b"11 size=abc\n").end()).contains("none"));
    assert!(damage(1024, good.clone().pax(b'x', &[("size", "abc")]).end()).contains("no number"));
    let nul = good.clone().member(b'L', "l", "", b"a\0b").file("x", b"");
    assert!(damage(2048, nul.end()).contains("NUL"));
    assert!(damage(1024, good.clone().member(b'x', "x", "", b"99 path=a\n").end()).contains("none"));
    assert!(damage(1024, good.clone().pax(b'g', &[("GNU.sparse.major", "1")]).end()).contains("global"));
    assert!(damage(2048, good.clone().member(b'L', "l", "", b"a").end()).contains("between"));
    assert!(damage(2048, good.clone().pax(b'x', &[("path", "a\0b")]).file("c", b"").end()).contains("NUL"));
    assert!(damage(2048, good.clone().pax(b'x', &[("path", "a")]).pax(b'x', &[("path", "b")]).end()).contains("two"));
    let long = header(b'L', b"l", b"", 1 << 32);
    assert!(damage(1024, good.clone().raw(&long).end()).contains("at most"));
    assert!(matches!(walk(&good.0).unwrap_err(), TarError::Truncated { offset: 1024 }));
    assert!(matches!(walk(&good.end()[..700]).unwrap_err(), TarError::Truncated { offset: 700 }));
    assert!(matches!(walk(b"").unwrap_err(), TarError::Truncated { offset: 0 }));
}

#[test]
fn maps_that_do_not_fit_the_data_are_refused() {
    let evil = Hand::default().file("../evil", b"").end();
    let said = |archive: Hand| walk(&archive.end()).unwrap_err().to_string();
    // Each would let GNU tar find other members behind the file than were vetted.
    let sparse = |records: &[(&str, &str)], data: &[u8]| {
        let size = data.len().to_string();
        let all = [&[("GNU.sparse.realsize", "100000"), ("size", size.as_str())], records].concat();
        Hand::default().pax(b'x', &all).file("s", data)
    };
    let one = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")];
    let with_map = |map: &str| {
        let mut data = map.as_bytes().to_vec();
        data.resize(data.len().next_multiple_of(BLOCK), 0);
        sparse(&one, &[data, evil.clone()].concat())
    };
    let blocks = evil.len();
    walk(&with_map(&format!("1\n0\n{blocks}\n")).end()).unwrap();
    assert!(said(with_map(&format!("1\n0\n{}\n", blocks - 512))).contains("but its data"));
    assert!(said(with_map(&format!("1\n0\n{}\n", blocks + 512))).contains("but its data"));
    assert!(said(with_map("0\n")).contains("but its data"));
    assert!(said(with_map("1\n99999\n2\n")).contains("behind its end"));
    assert!(said(with_map("1\n18446744073709551615\n2\n")).contains("behind its end"));
    assert!(said(with_map("x\n")).contains("no number"));
    assert!(said(with_map("18446744073709551615\n")).contains("too long"));
    assert!(said(sparse(&one, b"9\n1\n1\n")).contains("no end"));
    assert!(said(sparse(&one, b"")).contains("without its map"));
    let two = |announced: &str, map: &str| {
        sparse(&[("GNU.sparse.numblocks", announced), ("GNU.sparse.map", map)], &[7; 1024])
    };
    walk(&two("2", "0,512,2048,512").end()).unwrap();
    assert!(said(two("1", "0,512,2048,512")).contains("more pieces than"));
    assert!(said(two("3", "0,512,2048,512")).contains("fewer pieces"));
    assert!(said(two("2", "0,512,2048,1024")).contains("but its data"));
    // GNU tar does not go on to a second block of pieces when the first has room.
    let old = |last: u8, more: u8, len: &[u8]| {
        let mut header = header(b'S', b"s", b"", 1024);
        header[257..265].copy_from_slice(b"ustar  \0");
        header[483..494].copy_from_slice(b"00000100000");
        for piece in 0..last {
            let at = 386 + 24 * usize::from(piece);
            header[at..at + 11].copy_from_slice(format!("{:011o}", 4096 * u64::from(piece)).as_bytes());
            header[at + 12..at + 23].copy_from_slice(len);
        }
        header[482] = more;
        Hand::default().raw(&sum(header)).raw(&[0; 1024])
    };
    walk(&old(2, 0, b"00000001000").end()).unwrap();
    assert!(said(old(2, 1, b"00000001000")).contains("goes on behind its end"));
    assert!(said(old(2, 0, b"00000002000")).contains("but its data"));
    assert!(said(old(2, 0, b"00000100000")).contains("behind its end"));
}

#[test]
fn what_reaches_outside_is_refused() {
    let base = || Hand::default().dir("./").dir("./d").file("./d/f", b"x").symlink("./d/out", "/etc");
    let cases = [
        (base().file("../up", b""), "has '..' in it"),
        (base().file("./d/../../up", b""), "has '..' in it"),
        (base().dir("d/.."), "has '..' in it"),
        (base().file("/etc/passwd", b""), "is absolute"),
        (base().pax(b'x', &[("path", "/abs")]).file("fine", b""), "is absolute"),
        (base().pax(b'g', &[("path", "../all")]).file("fine", b""), "has '..' in it"),
        (base().member(b'L', "l", "", b"../long\0").file("fine", b""), "has '..' in it"),
        (
            base()
                .pax(
                    b'x',
                    &[
                        ("GNU.sparse.major", "1"),
                        ("GNU.sparse.minor", "0"),
                        ("GNU.sparse.realsize", "0"),
                        ("GNU.sparse.name", "../sparse"),
                    ],
                )
                .file("fine", b"0\n"),
            "has '..' in it",
        ),
        (base().file("./d/out/passwd", b""), "leads through a symbolic link"),
        (base().file("d//.///out/./passwd", b""), "leads through a symbolic link"),
        (base().dir("./d/out/deep/deeper"), "leads through a symbolic link"),
        (base().symlink("./d/out/x", "y"), "leads through a symbolic link"),
        // A directory that takes the place of the link is not believed.
        (base().dir("./d/out/").file("./d/out/passwd", b""), "leads through a symbolic link"),
        (base().hard_link("h", "../../etc/shadow"), "what it is linked to '../../etc/shadow' has '..'"),
        (base().hard_link("h", "/etc/shadow"), "what it is linked to '/etc/shadow' is absolute"),
        (base().hard_link("h", "d/out/shadow"), "leads through a symbolic link"),
        (base().hard_link("h", "./"), "linked to the top"),
        (base().hard_link("h", "d/out").file("h/passwd", b""), "leads through a symbolic link"),
        (base().file("./d/f/x", b""), "something that is no directory"),
        (base().hard_link("h", "d/f").file("h/x", b""), "something that is no directory"),
        (base().symlink("./", "/etc"), "replace the top directory"),
        (base().symlink(".", "/etc"), "replace the top directory"),
        (base().member(b'3', "null", "", b""), "device nodes"),
        (base().member(b'4', "sda", "", b""), "device nodes"),
        (base().member(b'M', "rest", "", b""), "its type 'M'"),
        (base().member(b'N', "names", "", b""), "its type 'N'"),
    ];
    for (archive, why) in cases {
        let said = refused(archive);
        assert!(said.contains(why), "{said}\nwanted: {why}");
    }
    assert!(
        refused(base().file("a/../b", b"")).starts_with("the member 'a/../b' at byte 2560 of the tar data is refused")
    );
}

#[test]
fn what_stays_inside_is_not() {
    let fine = Hand::default()
        .dir("./")
        .symlink("./etc", "/absolute/is/fine")
        .symlink("./lib", "../../also fine")
        .hard_link("./etc2", "./etc")
        .dir("./data")
        .dir("./data")
        .file("./data/..x", b"")
        .file("./data/x..", b"")
        .file("./data/...", b"")
        .file("./data/etc", b"")
        .file("./etcetera/x", b"")
        .file("replaced", b"")
        .dir("replaced/")
        .file("replaced/x", b"")
        .hard_link("./data/link", "data//x..");
    vet(&fine.clone().end(), false).unwrap();
    vet(&fine.member(b'3', "dev/null", "", b"").end(), true).unwrap();
}

#[test]
fn symbolic_links_are_bounded() {
    let mut vetting = Vetting::with_most_symlinks(Rules { devices: true }, 2);
    let archive = Hand::default().symlink("a", "x").symlink("b", "x").symlink("a", "x").symlink("c", "x").end();
    let error = Walker::new().feed(&archive, &mut |member| vetting.check(&member)).unwrap_err();
    assert!(error.to_string().contains("'c'") && error.to_string().contains("more than 2"), "{error}");
}

/// An archive in frames of `frame` bytes, with a table of its members.
fn framed(tar: &[u8], container: Container, frame: usize, spoil: fn(usize, &mut [u8])) -> Vec<u8> {
    let (mut packer, mut index, mut out) = (Packer::new(container).unwrap(), IndexBuilder::new(TAR_ID), Vec::new());
    for raw in tar.chunks(frame) {
        let mut packed = Vec::new();
        packer.pack(raw, &mut packed).unwrap();
        index.push(Frame::of_data(&packed, raw.len()));
        out.append(&mut packed);
    }
    let mut table = TableBuilder::new();
    walk_in(tar, usize::MAX).unwrap().iter().for_each(|member| table.push(member));
    for (number, part) in table.finish(container).unwrap().enumerate() {
        let mut part = part.unwrap();
        spoil(number, &mut part);
        index.push(Frame::of_table(&part));
        out.append(&mut part);
    }
    out.extend(index.finish(container));
    out
}

fn open(path: &Path) -> TarArchive {
    TarArchive::open(&Host::with_root("/".into()), path, &Cancel::new()).unwrap()
}

fn names(archive: &TarArchive, directory: &str) -> Vec<String> {
    let listed = archive.list(directory.as_bytes()).unwrap();
    listed.iter().map(|l| format!("{}{} {}", l.kind, l.size, printable(&l.name))).collect()
}

fn content(archive: &TarArchive, member: &str) -> Vec<u8> {
    let mut out = Vec::new();
    archive.read(member.as_bytes()).unwrap().0.read_to_end(&mut out).unwrap();
    out
}

/// Every way an archive can be stored, all with the same tar data.
fn stored(dir: &Path, tar: &[u8]) -> Vec<PathBuf> {
    let path = |name: &str, bytes: Vec<u8>| {
        let path = dir.join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    fn nothing(_: usize, _: &mut [u8]) {}
    fn flip(part: &mut [u8]) {
        let at = part.len() / 2;
        part[at] ^= 1;
    }
    fn first(number: usize, part: &mut [u8]) {
        if number == 0 {
            flip(part);
        }
    }
    let kept = path("kept.zst", zstd::encode_all(tar, 3).unwrap());
    let host = Host::with_root("/".into());
    let archive = TarArchive::open_with(&host, &kept, FirstPass::Keep, &Cancel::new()).unwrap();
    assert!(archive.is_random() && dir.join("kept.zst.idx").exists());
    vec![
        kept,
        path("plain", tar.to_vec()),
        path("frames.zst", framed(tar, Container::Zstd, 1000, nothing)),
        path("frames.gz", framed(tar, Container::Gzip, 7000, nothing)),
        path("one.zst", zstd::encode_all(tar, 1).unwrap()),
        path("bad table", framed(tar, Container::Zstd, 4000, |_, part| flip(part))),
        path("bad block", framed(tar, Container::Zstd, 4000, first)),
    ]
}

#[test]
fn a_tree_is_seen_without_unpacking() {
    let archive = Hand::default()
        .dir("./")
        .dir("./etc")
        .file("./etc/hostname", b"ct\n")
        .symlink("./etc/link", "hostname")
        .dir("./etc/network")
        .file("./etc/network/interfaces", b"auto lo\n")
        .file("./etc-not", b"")
        .hard_link("./again", "./etc/hostname")
        .file("twice", b"old")
        .file("./twice", b"newer")
        .hard_link("circle", "circle")
        .end();
    let dir = tempfile::tempdir().unwrap();
    for path in stored(dir.path(), &archive) {
        let archive = open(&path);
        let name = path.display();
        assert_eq!(names(&archive, ""), ["h0 again", "h0 circle", "d0 etc", "-0 etc-not", "-5 twice"], "{name}");
        assert_eq!(names(&archive, "./etc/"), ["-3 hostname", "l0 link", "d0 network"], "{name}");
        assert_eq!(content(&archive, "etc//network/./interfaces"), b"auto lo\n", "{name}");
        assert_eq!((content(&archive, "twice"), content(&archive, "again")), (b"newer".to_vec(), b"ct\n".to_vec()));
        let error = |result: Result<(), MemberError>| result.unwrap_err().to_string();
        assert!(error(archive.read(b"etc").map(|_| ())).contains("is a directory"));
        assert!(error(archive.read(b"etc/link").map(|_| ())).contains("is a symbolic link"));
        assert!(error(archive.read(b"circle").map(|_| ())).contains("is a hard link whose file is not before it"));
        assert!(error(archive.read(b"etc/none").map(|_| ())).contains("has no 'etc/none'"));
        assert!(error(archive.list(b"etc/none").map(|_| ())).contains("has no 'etc/none'"));
        assert!(error(archive.list(b"twice").map(|_| ())).contains("is no directory"));
        assert_eq!(archive.note().is_some(), path.to_string_lossy().contains("bad"), "{name}");
    }
}

#[test]
fn a_table_of_another_archive_leads_nowhere() {
    let tar = Hand::default().file("a", b"right").file("b", b"wrong").end();
    let other = Hand::default().file("b", b"right").file("a", b"wrong").end();
    let (mut packer, mut index, mut out) =
        (Packer::new(Container::Zstd).unwrap(), IndexBuilder::new(TAR_ID), Vec::new());
    packer.pack(&tar, &mut out).unwrap();
    index.push(Frame::of_data(&out, tar.len()));
    let mut table = TableBuilder::new();
    walk(&other).unwrap().iter().for_each(|member| table.push(member));
    for part in table.finish(Container::Zstd).unwrap() {
        let part = part.unwrap();
        index.push(Frame::of_table(&part));
        out.extend(part);
    }
    out.extend(index.finish(Container::Zstd));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, out).unwrap();
    let archive = open(&path);
    assert_eq!(content(&archive, "a"), b"right");
    assert!(archive.note().unwrap().contains("wrong"));
}

#[test]
fn a_large_table_is_small_and_complete() {
    let mut table = TableBuilder::new();
    // A million members with `make soak`.
    let soak = std::env::var_os("VZKEEP_SOAK").is_some();
    let (directories, files) = (if soak { 10_000 } else { 200 }, 100);
    let member = |path: String, kind, offset| Member {
        path: path.into_bytes(),
        kind,
        link: Vec::new(),
        size: 1234,
        stored: 1234,
        offset,
        data: offset + 512,
        layout: Layout::Whole,
        attributes: None,
    };
    let mut count = 0;
    let name = |d, f| format!("./usr/share/doc/package-{d:04}/file-{:05}.txt", f * 7919 % 100_000);
    for d in 0..directories {
        for f in 0..files {
            table.push(&member(name(d, f), Kind::File, count * 2048));
            count += 1;
        }
    }
    let parts: Vec<_> = table.finish(Container::Zstd).unwrap().map(Result::unwrap).collect();
    let bytes: usize = parts.iter().map(Vec::len).sum();
    eprintln!("a table of {count} members has {bytes} bytes");
    assert!(bytes as u64 <= 12 * count, "{bytes} bytes for {count} members");
    let mut found = Vec::new();
    for part in &parts[..parts.len() - 1] {
        let payload = crate::archive::frame::unwrap(Container::Zstd, part).unwrap();
        found.extend(entries(&table::unsealed(b'B', &payload).unwrap()).unwrap());
    }
    assert!(found.is_sorted() && found.len() as u64 == count);
    assert!(found.iter().any(|e| e.key == table::key(&normal(name(7, 3).as_bytes())) && e.offset == 703 * 2048));
}

#[test]
fn sparse_files_of_every_format_are_expanded() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("in");
    fs::create_dir(&inside).unwrap();
    let file = fs::File::create(inside.join("holes")).unwrap();
    file.set_len(3 << 20).unwrap();
    // More pieces than fit into one header and one block behind it.
    for piece in 0..60u64 {
        use std::os::unix::fs::FileExt;
        file.write_all_at(&[piece as u8 + 1; 5000], piece * 40960).unwrap();
    }
    fs::write(inside.join("behind"), "still found").unwrap();
    let wanted = fs::read(inside.join("holes")).unwrap();
    for words in ["--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"] {
        let format = if words.starts_with("--format") { "--sparse" } else { "--format=posix" };
        let tar = Command::new("tar")
            .arg("-C")
            .arg(&inside)
            .args(["-cf", "-", "--sparse", format, words, "holes", "behind"])
            .output()
            .unwrap();
        assert!(tar.status.success() && tar.stdout.len() < wanted.len() / 2, "{words}: {tar:?}");
        for path in stored(dir.path(), &tar.stdout) {
            let archive = open(&path);
            assert_eq!(names(&archive, "."), ["-11 behind", &format!("-{} holes", wanted.len())], "{words}");
            assert!(content(&archive, "holes") == wanted, "{words} {}", path.display());
            assert_eq!(content(&archive, "behind"), b"still found");
            let (member, mut raw) = archive.read_raw(b"holes").unwrap();
            let mut bytes = Vec::new();
            raw.read_to_end(&mut bytes).unwrap();
            assert_eq!((bytes.len() as u64, member.size), (member.stored, wanted.len() as u64));
        }
    }
}

/// What the fuzz target `tar` does, over its corpus.
#[test]
fn fuzz_corpus() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/tar");
    let mut files = 0;
    for file in fs::read_dir(dir).unwrap() {
        rehearse(&fs::read(file.unwrap().path()).unwrap());
        files += 1;
    }
    assert!(files > 3);
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer(
        flag in prop::sample::select(b"01235LKxgS\0DVM".to_vec()),
        name in "[./a-c]{0,12}",
        link in "[./a-c]{0,12}",
        data in prop::collection::vec(any::<u8>(), 0..600),
        flips in prop::collection::vec((0usize..4000, any::<u8>()), 0..3),
    ) {
        let mut archive = Hand::default().member(flag, &name, &link, &data).symlink("a", "b").file("a/c", b"x").end();
        for (at, bits) in flips {
            let at = at % archive.len();
            archive[at] ^= bits;
        }
        rehearse(&archive);
        // Whatever the pieces, the same members.
        let whole = format!("{:?}", walk_in(&archive, usize::MAX));
        prop_assert_eq!(format!("{:?}", walk_in(&archive, 100)), whole);
        entries(&data);
    }

    #[test]
    fn what_is_vetted_stays_inside(parts in prop::collection::vec((0u8..4, "[a-c]{1}(/[a-c.]{1,2}){0,3}", "[a-c.]{1,2}(/[a-c]){0,2}"), 1..12)) {
        // An independent, slow judge: the same tree in a map, links followed by name.
        let mut vetting = Vetting::new(Rules { devices: false });
        let mut links: Vec<Vec<u8>> = Vec::new();
        for (kind, path, link) in parts {
            let kind = [Kind::File, Kind::Directory, Kind::Symlink, Kind::HardLink][usize::from(kind)];
            let through = |path: &[u8]| {
                let whole = normal(path);
                links.iter().any(|link| whole.starts_with(&[link, &b"/"[..]].concat()))
                    || components(path).any(|part| part == b"..")
            };
            let (path, link) = (path.into_bytes(), link.into_bytes());
            let bad = through(&path) || kind == Kind::HardLink && through(&link);
            let target = link.clone();
            let member = Member {
                path: path.clone(), kind, link, size: 0, stored: 0, offset: 0, data: 512, layout: Layout::Whole, attributes: None,
            };
            let allowed = vetting.check(&member).is_ok();
            prop_assert!(!(bad && allowed), "{:?}", printable(&path));
            if allowed && (kind == Kind::Symlink || kind == Kind::HardLink && links.contains(&normal(&target))) {
                links.push(normal(&path));
            }
        }
    }
}
