use std::sync::Arc;

use super::*;
use crate::filesystem::lookup;
use crate::image::MemImage;

fn corpus(name: &str) -> Ntfs {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/disk").join(name);
    Ntfs::open(Arc::new(MemImage::new("disk", std::fs::read(path).unwrap()))).unwrap()
}

#[test]
fn the_seed_for_fuzzing_is_good() {
    let fs = corpus("ntfs");
    let directory = lookup(&fs, ROOT, b"d").unwrap().unwrap();
    assert!(fs.read_dir(directory).unwrap().len() > 10);
    let content = fs.open(lookup(&fs, directory, b"small").unwrap().unwrap()).unwrap();
    let mut bytes = [0; 10];
    assert_eq!((content.read_at(&mut bytes, 0).unwrap(), &bytes[..6]), (6, &b"hello\n"[..]));
}

#[test]
fn a_directory_whose_blocks_are_one_block_over_and_over_is_refused() {
    let fs = corpus("ntfs_endless");
    let directory = lookup(&fs, ROOT, b"d").unwrap().unwrap();
    let why = fs.read_dir(directory).unwrap_err().to_string();
    assert!(why.contains("more blocks than there are on its disk"), "{why}");
}
