//! The client against servers that keep to the protocol, in all the freedom it gives them.

use std::sync::Arc;
use std::time::Duration;

use super::script::{SIZE, Server, byte, content, with_server};
use crate::nbd::{BASE_ALLOCATION, Client, NbdError, Options};

#[test]
fn a_large_read_is_in_flight_at_once_and_answered_backwards() {
    let (client, server) = with_server(1, true, SIZE, |s| {
        let requests: Vec<_> = (0..8).map(|_| s.request().unwrap()).collect();
        for r in requests.iter().rev() {
            let half = r.len as usize / 2;
            s.data(r.cookie, false, r.offset + half as u64, half);
            s.data(r.cookie, false, r.offset, half);
            s.chunk(r.cookie, true, 0, &[]);
        }
        requests.len()
    });
    let mut buf = vec![0; 2 << 20];
    client.unwrap().read_at(&mut buf, 4096).unwrap();
    assert_eq!(buf, content(4096, 2 << 20));
    assert_eq!(server.join().unwrap(), 8);
}

#[test]
fn threads_get_their_own_bytes_whatever_the_order() {
    let (client, server) = with_server(1, true, SIZE, |s| {
        for _ in 0..25 {
            let mut requests: Vec<_> = (0..8).map(|_| s.request().unwrap()).collect();
            requests.sort_by_key(|r| byte(r.offset));
            for r in &requests {
                s.data(r.cookie, false, r.offset + 1000, r.len as usize - 1000);
            }
            for r in requests.iter().rev() {
                s.data(r.cookie, true, r.offset, 1000);
            }
        }
    });
    let client = Arc::new(client.unwrap());
    let threads: Vec<_> = (0..8u64)
        .map(|t| {
            let client = Arc::clone(&client);
            std::thread::spawn(move || {
                for i in 0..25 {
                    let (mut buf, at) = (vec![0; 3000], t * 1_000_000 + i * 5000);
                    client.read_at(&mut buf, at).unwrap();
                    assert_eq!(buf, content(at, 3000));
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    server.join().unwrap();
}

#[test]
fn holes_are_zero_and_simple_replies_do() {
    let (client, server) = with_server(1, true, SIZE, |s| {
        let r = s.request().unwrap();
        s.data(r.cookie, false, 1024, 1024);
        let mut hole = 0u64.to_be_bytes().to_vec();
        hole.extend(1024u32.to_be_bytes());
        s.chunk(r.cookie, true, 2, &hole);
    });
    let mut buf = vec![0xff; 2048];
    client.unwrap().read_at(&mut buf, 0).unwrap();
    assert_eq!(buf[..1024], [0; 1024]);
    assert_eq!(buf[1024..], content(1024, 1024));
    server.join().unwrap();

    let (client, server) = with_server(1, false, SIZE, |s| {
        let r = s.request().unwrap();
        s.simple(r.cookie, 0);
        s.put(&content(r.offset, r.len as usize));
        let r = s.request().unwrap();
        s.simple(r.cookie, 28);
        let r = s.request().unwrap();
        s.simple(r.cookie, 0);
        r.kind
    });
    let client = client.unwrap();
    let mut buf = vec![0; 700];
    client.read_at(&mut buf, 77).unwrap();
    assert_eq!(buf, content(77, 700));
    let full = client.write_at(&buf, 0).unwrap_err();
    assert_eq!(std::io::Error::from(full.clone()).kind(), std::io::ErrorKind::StorageFull);
    assert!(full.to_string().contains("write of 700 bytes at offset 0"), "{full}");
    client.flush().unwrap();
    assert!(!client.has_context(BASE_ALLOCATION));
    assert!(matches!(client.block_status(BASE_ALLOCATION, 0, 1), Err(NbdError::Unsupported(_))));
    assert_eq!(server.join().unwrap(), 3);
}

#[test]
fn an_error_chunk_names_the_byte_and_the_connection_lives_on() {
    let (client, server) = with_server(1, true, SIZE, |s| {
        let r = s.request().unwrap();
        s.data(r.cookie, false, r.offset, 512);
        let mut error = vec![0, 0, 0, 5, 0, 6];
        error.extend(b"broken");
        error.extend(8704u64.to_be_bytes());
        s.chunk(r.cookie, true, 0x8002, &error);
        let r = s.request().unwrap();
        s.data(r.cookie, true, r.offset, r.len as usize);
    });
    let client = client.unwrap();
    let error = client.read_at(&mut [0; 4096], 8192).unwrap_err();
    assert!(matches!(error, NbdError::Server { offset: 8704, errno: 5, .. }), "{error:?}");
    assert!(error.to_string().contains("broken") && !error.is_fatal(), "{error}");
    client.read_at(&mut [0; 100], 0).unwrap();
    server.join().unwrap();
}

/// A server of 512-byte blocks whose disk ends in a partial one.
#[test]
fn requests_keep_to_the_blocks_of_the_server() {
    let size = 512 * 10 + 100;
    let (client, server) = with_server(512, true, size, move |s| {
        let mut disk = content(0, size as usize);
        while let Some(r) = s.request() {
            let end = r.offset + u64::from(r.len);
            assert!(r.offset % 512 == 0 && (end % 512 == 0 || end == size), "{r:?}");
            let range = r.offset as usize..end as usize;
            match r.kind {
                0 => {
                    let mut body = r.offset.to_be_bytes().to_vec();
                    body.extend(&disk[range]);
                    s.chunk(r.cookie, true, 1, &body);
                }
                1 => {
                    disk[range].copy_from_slice(&r.data);
                    s.simple(r.cookie, 0);
                }
                6 => {
                    disk[range].fill(0);
                    s.simple(r.cookie, 0);
                }
                _ => panic!("{r:?}"),
            }
        }
        disk
    });
    let client = client.unwrap();
    let mut disk = content(0, size as usize);
    for (from, to) in
        [(0, 5220), (1, 2), (511, 513), (512, 1024), (700, 5119), (5119, 5220), (5219, 5220), (5120, 5220), (9, 9)]
    {
        let mut buf = vec![0; to - from];
        client.read_at(&mut buf, from as u64).unwrap();
        assert_eq!(buf, disk[from..to], "read of {from}..{to}");
    }
    for (i, (from, to)) in [(1, 2), (511, 513), (700, 5119), (5219, 5220), (5000, 5220)].into_iter().enumerate() {
        disk[from..to].fill(i as u8);
        client.write_at(&disk[from..to], from as u64).unwrap();
    }
    disk[1000..3000].fill(0);
    client.write_zeroes(1000, 2000).unwrap();
    disk[30..40].fill(0);
    client.write_zeroes(30, 10).unwrap();
    assert!(matches!(client.read_at(&mut [0; 2], size - 1), Err(NbdError::OutOfRange { .. })));
    assert!(matches!(client.read_at(&mut [0; 2], u64::MAX), Err(NbdError::OutOfRange { .. })));
    drop(client);
    assert_eq!(server.join().unwrap(), disk);
}

#[test]
fn block_status_is_cut_and_merged() {
    let (client, server) = with_server(512, true, SIZE, |s| {
        let extents = [vec![(1024u32, 0u32), (512, 3)], vec![(512, 3), (1 << 20, 0)]];
        for piece in extents {
            let r = s.request().unwrap();
            let mut body = 7u32.to_be_bytes().to_vec();
            for (len, flags) in piece {
                body.extend(len.to_be_bytes());
                body.extend(flags.to_be_bytes());
            }
            s.chunk(r.cookie, true, 5, &body);
        }
    });
    let status = client.unwrap().block_status(BASE_ALLOCATION, 100, 3900).unwrap();
    assert_eq!(status, [(924, 0), (1024, 3), (1952, 0)]);
    server.join().unwrap();
}

#[test]
fn a_reply_without_a_request_does_not_hurt_a_goodbye() {
    let (client, server) = with_server(1, true, SIZE, |s| s.request());
    drop(client.unwrap());
    assert_eq!(server.join().unwrap(), None);
}

/// A flush takes as long as the device takes; a read that long means the server is gone.
#[test]
fn a_slow_flush_is_waited_for() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let mut s = Server::new(theirs, 1, false, SIZE);
        for _ in 0..2 {
            let r = s.request().unwrap();
            std::thread::sleep(Duration::from_millis(700));
            s.simple(r.cookie, 0);
        }
    });
    let (timeout, write_timeout) = (Duration::from_millis(200), Duration::from_secs(5));
    let options = Options { meta_contexts: vec![], timeout, write_timeout };
    let client = Client::from_stream(ours, "disk", &options).unwrap();
    client.flush().unwrap();
    let error = client.read_at(&mut [0; 512], 0).unwrap_err();
    assert!(matches!(error, NbdError::Timeout(t) if t == timeout), "{error}");
    server.join().unwrap();
}

/// One request at a time, like the simplest of servers: big reads and big writes side by side must not lock up.
#[test]
fn reads_and_writes_against_a_server_that_does_one_thing_at_a_time() {
    let (client, server) = with_server(1, true, SIZE, |s| {
        while let Some(r) = s.request() {
            match r.kind {
                0 => s.data(r.cookie, true, r.offset, r.len as usize),
                _ => s.simple(r.cookie, 0),
            }
        }
    });
    let client = client.unwrap();
    std::thread::scope(|scope| {
        for t in 0..6u64 {
            let client = &client;
            scope.spawn(move || {
                let mut buf = vec![0; 3_000_000];
                for i in 0..4 {
                    if t % 2 == 0 {
                        client.read_at(&mut buf, i * 1000 + t).unwrap();
                        assert!(buf == content(i * 1000 + t, 3_000_000));
                    } else {
                        client.write_at(&buf, i * 1000).unwrap();
                    }
                }
            });
        }
    });
    drop(client);
    server.join().unwrap();
}

#[test]
fn reads_ask_for_one_piece_until_the_server_cannot() {
    let (client, server) = with_server(1, true, SIZE, |s| {
        let r = s.request().unwrap();
        assert_eq!(r.flags, 4);
        s.chunk(r.cookie, true, 0x8001, &[0, 0, 0, 75, 0, 0]);
        for _ in 0..2 {
            let r = s.request().unwrap();
            assert_eq!(r.flags, 0);
            s.data(r.cookie, false, r.offset, 1);
            s.data(r.cookie, true, r.offset + 1, r.len as usize - 1);
        }
        let r = s.request().unwrap();
        assert_eq!((r.kind, r.flags), (1, 0));
        s.simple(r.cookie, 0);
    });
    let client = client.unwrap();
    let mut buf = vec![0; 100_000];
    client.read_at(&mut buf, 5).unwrap();
    assert_eq!(buf, content(5, 100_000));
    client.read_at(&mut buf, 6).unwrap();
    client.write_at(&buf, 7).unwrap();
    server.join().unwrap();
}
