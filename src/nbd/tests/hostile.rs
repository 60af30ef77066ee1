//! Servers that lie, stall or talk without end. Each costs the connection, soon, with an error that says what was wrong.

use std::time::{Duration, Instant};

use super::script::{Request, SIZE, Server, with_server};
use crate::nbd::{BASE_ALLOCATION, Client, NbdError};

/// What the client says after one request to a server that answers with `script`.
fn ask(
    request: impl FnOnce(&Client) -> Result<(), NbdError>,
    script: impl FnOnce(&mut Server, Request) + Send + 'static,
) -> NbdError {
    let (client, server) = with_server(1, true, SIZE, |s| {
        let r = s.request().unwrap();
        script(s, r);
    });
    let client = client.unwrap();
    let start = Instant::now();
    let error = request(&client).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
    assert!(error.is_fatal(), "{error}");
    assert!(client.read_at(&mut [0; 1], 0).is_err(), "the connection must be dead");
    server.join().unwrap();
    error
}

fn read(script: impl FnOnce(&mut Server, Request) + Send + 'static) -> String {
    ask(|c| c.read_at(&mut [0; 4096], 4096), script).to_string()
}

fn status(script: impl FnOnce(&mut Server, Request) + Send + 'static) -> String {
    ask(|c| c.block_status(BASE_ALLOCATION, 0, 1 << 20).map(drop), script).to_string()
}

#[track_caller]
fn says(error: &str, what: &str) {
    assert!(error.contains(what), "{error:?} does not say {what:?}");
}

#[test]
fn nonsense() {
    says(&read(|s, _| s.put(&[0x42; 64])), "0x42424242 is not the start of a reply");
    says(&read(|s, r| s.data(r.cookie + 16, true, 4096, 4096)), "no open request");
    says(&read(|s, r| s.simple(r.cookie, 0)), "simple reply");
    says(&read(|s, r| s.chunk(r.cookie, true, 77, &[0; 5])), "type 77");
    says(&read(|s, r| s.chunk(r.cookie, true, 0x8001, &[0, 0, 0, 5, 0xff, 0])), "error chunk");
    says(&read(|s, r| s.chunk(r.cookie, true, 0x8001, &[0, 0, 0, 0, 0, 0])), "without an error");
    says(&read(|s, r| s.chunk(r.cookie, true, 5, &[0; 12])), "0 bytes");
}

#[test]
fn bytes_that_do_not_add_up() {
    says(&read(|s, r| s.data(r.cookie, true, 4096, 4095)), "4095 bytes only");
    says(&read(|s, r| s.data(r.cookie, true, 4095, 4096)), "chunk of 4096 bytes at offset 4095");
    says(&read(|s, r| s.data(r.cookie, true, 4097, 4096)), "chunk of 4096 bytes at offset 4097");
    says(&read(|s, r| s.chunk(r.cookie, true, 0, &[])), "0 bytes only");
    says(
        &read(|s, r| s.put(&[&super::script::chunk(r.cookie, false, 1, &[])[..16], &[0xff; 40]].concat())),
        "offset 18446744073709551615",
    );
    let twice = |s: &mut Server, r: Request| {
        s.data(r.cookie, false, 4096, 2048);
        s.data(r.cookie, false, 6000, 2048);
    };
    says(&read(twice), "twice");
}

#[test]
fn talk_without_end() {
    says(&read(|s, r| (0..1000).for_each(|_| s.chunk(r.cookie, false, 0, &[]))), "empty chunk");
    says(&read(|s, r| (0..1000).for_each(|_| s.chunk(r.cookie, false, 0x8001, &[0, 0, 0, 5, 0, 0]))), "without end");
    says(&read(|s, r| (0..2000).for_each(|i| s.data(r.cookie, false, 4096 + i * 2, 1))), "small pieces");
    let crumbs = |s: &mut Server, mut r: Request| {
        let body = [7u32, 1, 0, 1, 3].map(u32::to_be_bytes).concat();
        loop {
            s.chunk(r.cookie, true, 5, &body);
            match s.request() {
                Some(next) => r = next,
                None => break,
            }
        }
    };
    says(&status(crumbs), "small pieces");
}

#[test]
fn block_status_that_means_nothing() {
    says(&status(|s, r| s.chunk(r.cookie, true, 5, &[7u32, 0, 0].map(u32::to_be_bytes).concat())), "extent of 0 bytes");
    says(&status(|s, r| s.chunk(r.cookie, true, 5, &[8u32, 512, 0].map(u32::to_be_bytes).concat())), "meta context 8");
    says(&status(|s, r| s.chunk(r.cookie, true, 0, &[])), "without extents");
    says(&status(|s, r| s.put(&[&super::script::chunk(r.cookie, true, 5, &[])[..16], &[0x7f; 8]].concat())), "type 5");
}

#[test]
fn silence_and_disappearance() {
    let silent = ask(
        |c| c.read_at(&mut [0; 4096], 0),
        |s, _| {
            while s.request().is_some() {}
        },
    );
    assert!(matches!(silent, NbdError::Timeout(_)), "{silent}");
    says(&read(|_, _| {}), "closed it");
    says(
        &read(|s, r| {
            s.put(&super::script::chunk(r.cookie, false, 1, &[&4096u64.to_be_bytes()[..], &[0; 92]].concat())[..50])
        }),
        "closed it",
    );
}

#[test]
fn everybody_hears_of_the_end() {
    let (client, server) = with_server(1, true, SIZE, |s| {
        for _ in 0..4 {
            s.request();
        }
    });
    let client = client.unwrap();
    std::thread::scope(|scope| {
        for t in 0..4 {
            let client = &client;
            scope.spawn(move || assert!(client.read_at(&mut [0; 4096], t * 4096).is_err()));
        }
    });
    server.join().unwrap();
}
