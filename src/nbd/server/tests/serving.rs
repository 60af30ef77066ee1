//! What a client reads and writes.

use super::*;

#[test]
fn every_byte_and_every_hole() {
    let mut scene = Scene::one(disk());
    let (client, bytes) = (scene.client("disk"), content(SIZE));
    assert!(client.export().read_only && client.export().structured && client.export().can_df);
    assert_eq!((client.size(), client.export().min_block, client.export().max_block), (SIZE as u64, 1, 32 << 20));
    for (at, len) in [(0, SIZE), (1, 1), (0, 4096), (65_535, 300_000), (SIZE - 1, 1), (SIZE - 4097, 4097), (17, 0)] {
        let mut buf = vec![0xee; len];
        client.read_at(&mut buf, at as u64).unwrap();
        assert!(buf == bytes[at..at + len], "{len} bytes at offset {at}");
    }
    let status = client.block_status(BASE_ALLOCATION, 0, SIZE as u64).unwrap();
    let expected: Vec<(u64, u32)> = (0..SIZE as u64 >> 17).map(|i| (1 << 17, if i % 2 == 1 { 3 } else { 0 })).collect();
    assert_eq!(status, expected);
    assert_eq!(client.block_status(BASE_ALLOCATION, 100_000, 40_000).unwrap(), [(31_072, 0), (8928, 3)]);
    drop(client);
    scene.stop();
    assert!(scene.said().is_empty(), "{:?}", scene.said());
}

#[test]
fn many_clients_with_many_threads() {
    let scene = Scene::one(disk());
    let bytes = content(SIZE);
    std::thread::scope(|scope| {
        for c in 0..4usize {
            let (client, bytes) = (Arc::new(scene.client("")), &bytes);
            for t in 0..6usize {
                let client = Arc::clone(&client);
                scope.spawn(move || {
                    for i in 0..40 {
                        let len = 1 + (c * 7919 + t * 104_729 + i * 65_537) % 700_000;
                        let at = (c * 999_983 + t * 2_999_999 + i * 1_777_777) % (SIZE - len);
                        let mut buf = vec![0; len];
                        client.read_at(&mut buf, at as u64).unwrap();
                        assert!(buf == bytes[at..at + len], "client {c}, {len} bytes at offset {at}");
                    }
                });
            }
        }
    });
    assert!(scene.said().is_empty());
}

#[test]
fn requests_of_one_client_are_carried_out_side_by_side() {
    // One after the other they would take 8 seconds; the bound leaves a busy machine six of them.
    let slow = FaultyImage::new(Arc::new(disk())).delay(Duration::from_secs(1));
    let scene = Scene::one(slow);
    let (client, start) = (scene.client(""), Instant::now());
    std::thread::scope(|scope| {
        for t in 0..8 {
            let client = &client;
            scope.spawn(move || client.read_at(&mut [0; 512], t * 4096).unwrap());
        }
    });
    assert!(start.elapsed() < Duration::from_secs(7), "{:?}", start.elapsed());
}

#[test]
fn a_disk_that_cannot_be_read_fails_the_request_and_is_reported() {
    let bad = FaultyImage::new(Arc::new(disk())).fail_range(1_000_000..1_000_512);
    let scene = Scene::one(bad);
    let client = scene.client("disk");
    client.read_at(&mut [0; 4096], 0).unwrap();
    let error = client.read_at(&mut vec![0; 100_000], 950_000).unwrap_err();
    assert!(!error.is_fatal());
    let text = error.to_string();
    assert!(text.contains("offset 1000000") && text.contains("Input/output error"), "{text}");
    // The same connection lives on.
    client.read_at(&mut [0; 4096], 1_000_512).unwrap();
    let said = scene.said();
    let expected = "drive-scsi0: read of 50000 bytes at offset 1000000 failed: Input/output error (os error 5)";
    assert_eq!(said, [expected]);
}

#[test]
fn extents_that_are_not_known_do_not_matter_to_a_read() {
    let scene = Scene::one(FaultyImage::new(Arc::new(disk())).fail_extents());
    let client = scene.client("disk");
    let mut buf = vec![0; SIZE];
    client.read_at(&mut buf, 0).unwrap();
    assert!(buf == content(SIZE));
    assert!(client.block_status(BASE_ALLOCATION, 0, 4096).unwrap_err().to_string().contains("Input/output error"));
    assert!(scene.said()[0].contains("block status of"));
}

#[test]
fn writes_zeros_trims_and_what_is_seen_of_them() {
    let exports = vec![Export::writable("a", overlay(disk())), Export::read_only("b", Arc::new(disk()))];
    let scene = Scene::new(Exports::new(exports), Settings::default());
    let (client, other, mut expected) = (scene.client("a"), scene.client("a"), content(SIZE));
    let export = client.export();
    assert!(!export.read_only && export.can_flush && export.can_trim && export.can_write_zeroes);
    // 3 MiB in one request: written piece by piece.
    for (at, len) in [(0usize, 512usize), (5000, 3 << 20), (SIZE - 10, 10), (4 << 20, 4096)] {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 31 + at) as u8).collect();
        client.write_at(&bytes, at as u64).unwrap();
        expected[at..at + len].copy_from_slice(&bytes);
    }
    client.write_zeroes(6_000_000, 1_000_001).unwrap();
    expected[6_000_000..7_000_001].fill(0);
    client.trim(8 << 20, 8192).unwrap();
    expected[8 << 20..(8 << 20) + 8192].fill(0);
    client.flush().unwrap();
    let mut seen = vec![0; SIZE];
    other.read_at(&mut seen, 0).unwrap();
    assert!(seen == expected, "another connection sees the same");
    let status = other.block_status(BASE_ALLOCATION, 6_500_000, 4096).unwrap();
    assert_eq!(status, [(4096, 3)]);
    // What lies below is untouched.
    let below = scene.client("b");
    below.read_at(&mut seen, 0).unwrap();
    assert!(seen == content(SIZE));
    assert!(below.write_at(&[1; 512], 0).is_err());
}

#[test]
fn an_export_in_the_background_gets_there() {
    let slow: Arc<dyn Image> = Arc::new(FaultyImage::new(Arc::new(disk())).delay(Duration::from_millis(30)));
    let exports =
        vec![Export::read_only("guest", Arc::clone(&slow)), Export::read_only("copy", Arc::new(disk())).background()];
    let scene = Scene::new(Exports::new(exports), Settings::default());
    let (guest, copy) = (scene.client("guest"), scene.client("copy"));
    std::thread::scope(|scope| {
        scope.spawn(|| (0..20).for_each(|i| guest.read_at(&mut [0; 4096], i * 4096).unwrap()));
        let mut buf = vec![0; SIZE];
        copy.read_at(&mut buf, 0).unwrap();
        assert!(buf == content(SIZE));
    });
}
