//! The data that is backed up: half of it random, a quarter like text, a quarter zeros that are written, not left out.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

const PIECE: usize = 1 << 20;

/// Fills the first `mib` MiB of an existing file.
pub fn fill(path: &Path, mib: usize) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let mut out = BufWriter::with_capacity(PIECE, file);
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut piece = Vec::with_capacity(PIECE + 64);
    for _ in 0..mib / 2 {
        piece.clear();
        piece.extend((0..PIECE / 8).flat_map(|_| noise.next().to_le_bytes()));
        out.write_all(&piece).unwrap();
    }
    let words = words(&mut noise);
    for _ in 0..mib / 4 {
        piece.clear();
        while piece.len() < PIECE {
            text(&mut piece, &words, &mut noise);
        }
        out.write_all(&piece[..PIECE]).unwrap();
    }
    piece.clear();
    piece.resize(PIECE, 0);
    for _ in 0..mib / 4 {
        out.write_all(&piece).unwrap();
    }
    out.into_inner().unwrap().sync_all().unwrap();
}

/// Makes `directories` of `files` each, together about `mib` MiB: like programs and documents, half of it random.
pub fn tree(dir: &Path, directories: usize, files: usize, mib: usize) {
    let mut noise = Noise(0x2545_f491_4f6c_dd1d);
    let words = words(&mut noise);
    let largest = 2 * mib * PIECE / (directories * files);
    for number in 0..directories {
        let dir = dir.join(directory(number));
        std::fs::create_dir_all(&dir).unwrap();
        for file in 0..files {
            // No two files have anything in common: what compresses is inside of each.
            let len = noise.below(largest);
            let mut content: Vec<u8> = (0..len / 16).flat_map(|_| noise.next().to_le_bytes()).collect();
            while content.len() < len {
                text(&mut content, &words, &mut noise);
            }
            std::fs::write(dir.join(format!("file-{file:03}.dat")), content).unwrap();
        }
    }
}

/// The name of one of them.
pub fn directory(number: usize) -> String {
    format!("directory-{number:04}")
}

/// Brings a file into the page cache, so that every run starts from the same state.
pub fn warm(path: &Path) {
    let mut file = File::open(path).unwrap();
    let mut piece = vec![0; PIECE];
    while file.read(&mut piece).unwrap() > 0 {}
}

/// xorshift64: reproducible, and fast enough not to be waited for.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end
    }
}

fn words(noise: &mut Noise) -> Vec<Vec<u8>> {
    let word = |noise: &mut Noise| {
        let len = 2 + noise.below(9);
        (0..len).map(|_| b"etaoinshrdlucmfwypvbgkjqxz"[noise.below(26).min(noise.below(26))]).collect()
    };
    (0..8192).map(|_| word(noise)).collect()
}

/// Appends a line like one of a log file: a stamp, then words, the common ones more often than the others.
fn text(piece: &mut Vec<u8>, words: &[Vec<u8>], noise: &mut Noise) {
    let stamp = noise.below(86_400_000);
    write!(piece, "2026-11-22 {:02}:{:02}:{:06.3} ", stamp / 3_600_000, stamp / 60_000 % 60, stamp as f64 / 1e3 % 60.0)
        .unwrap();
    for _ in 0..6 + noise.below(12) {
        let bits = 1 + noise.below(13);
        piece.extend_from_slice(&words[noise.below(1 << bits)]);
        piece.push(b' ');
    }
    writeln!(piece, "{}", noise.below(1000)).unwrap();
}
