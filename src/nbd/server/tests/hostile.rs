//! Clients that lie, stop half way, or come in crowds: they lose their own connection, and the others notice nothing.

use super::handshake::{asks, option, request};
use super::*;

fn settings() -> Settings {
    let short = Duration::from_millis(300);
    Settings { handshake: short, patience: short, drain: Duration::from_secs(5), ..Settings::default() }
}

fn scene() -> Scene {
    Scene::new(Exports::new(vec![Export::writable("disk", overlay(disk()))]), settings())
}

/// A connection that has chosen the export.
fn chosen(scene: &Scene) -> UnixStream {
    let mut stream = scene.raw();
    let words = [&[0, 0, 0, 3][..], &option(8, &[]), &option(7, &asks("disk", &[]))].concat();
    stream.write_all(&words).unwrap();
    // Greeting, two acknowledgements, export and block sizes.
    stream.read_exact(&mut [0; 18 + 20 + 20 + 12 + 20 + 14 + 20]).unwrap();
    stream
}

/// Whatever comes until the server closes.
fn until_closed(mut stream: UnixStream) -> Vec<u8> {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => rest,
        other => {
            other.expect("the server closes the connection");
            rest
        }
    }
}

#[track_caller]
fn still_serves(scene: &Scene) {
    let mut buf = [0; 4096];
    scene.client("disk").read_at(&mut buf, 8192).unwrap();
    assert!(buf == content(SIZE)[8192..12_288]);
}

#[track_caller]
fn says(scene: &Scene, what: &str) {
    soon(what, || scene.said().iter().any(|line| line.contains(what)));
}

#[test]
fn nonsense_ends_the_connection() {
    let scene = scene();
    let mut stream = scene.raw();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    until_closed(stream);
    says(&scene, "as the answer to the greeting");
    let mut stream = scene.raw();
    stream.write_all(&[&[0, 0, 0, 3][..], &[0x42; 100]].concat()).unwrap();
    until_closed(stream);
    says(&scene, "is not the start of an option");
    let mut stream = chosen(&scene);
    stream.write_all(&[0x42; 100]).unwrap();
    until_closed(stream);
    says(&scene, "is not the start of a request");
    let mut stream = chosen(&scene);
    stream.write_all(&request(1, 0, 0, (32 << 20) + 1)).unwrap();
    until_closed(stream);
    says(&scene, "a write of 33554433 bytes, 33554432 are allowed");
    still_serves(&scene);
}

#[test]
fn silence_in_the_middle_ends_the_connection_and_silence_between_does_not() {
    let mut scene = scene();
    let quiet = chosen(&scene);
    let greeted = scene.raw();
    until_closed(greeted);
    says(&scene, "nothing came from the client");
    let mut half = chosen(&scene);
    half.write_all(&request(0, 0, 0, 4096)[..11]).unwrap();
    until_closed(half);
    let mut payload = chosen(&scene);
    payload.write_all(&[request(1, 0, 0, 4096), vec![1; 1000]].concat()).unwrap();
    until_closed(payload);
    assert_eq!(scene.said().len(), 3, "{:?}", scene.said());
    // That took a second, three times the server's patience.
    let mut quiet = quiet;
    quiet.write_all(&request(0, 0, 0, 16)).unwrap();
    quiet.read_exact(&mut [0; 20 + 8 + 16]).unwrap();
    still_serves(&scene);
    scene.stop();
}

#[test]
fn a_client_that_takes_no_answers() {
    let mut scene = scene();
    let mut greedy = chosen(&scene);
    greedy.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    // 100 x 8 MiB, of which the socket holds a fraction.
    for _ in 0..100 {
        if greedy.write_all(&request(0, 0, 0, 8 << 20)).is_err() {
            break;
        }
    }
    still_serves(&scene);
    says(&scene, "nothing was taken by it");
    drop(greedy);
    still_serves(&scene);
    scene.stop();
}

#[test]
fn clients_that_vanish() {
    let mut scene = scene();
    for sent in [0, 3, 28] {
        let mut stream = chosen(&scene);
        stream.write_all(&request(0, 0, 0, 8 << 20)[..sent]).unwrap();
        if sent == 28 {
            // In the middle of the reply.
            stream.read_exact(&mut vec![0; 100_000]).unwrap();
        }
    }
    drop(scene.raw());
    soon("all are gone", || scene.server.as_ref().unwrap().clients() == 0);
    still_serves(&scene);
    scene.stop();
    assert!(scene.said().is_empty(), "going is no trouble: {:?}", scene.said());
}

#[test]
fn a_thousand_connections() {
    let mut scene = Scene::new(
        Exports::new(vec![Export::read_only("disk", Arc::new(disk()))]),
        Settings { connections: 16, handshake: Duration::from_secs(60), ..settings() },
    );
    let mut streams: Vec<UnixStream> = (0..1000).map(|_| scene.raw()).collect();
    // The sixteen first are greeted, all others sent away.
    let greeted = streams.iter_mut().map(|stream| stream.read_exact(&mut [0; 18])).filter(Result::is_ok).count();
    assert_eq!(greeted, 16);
    says(&scene, "16 clients are connected already");
    drop(streams);
    soon("all are gone", || scene.server.as_ref().unwrap().shared.connections().is_empty());
    still_serves(&scene);
    scene.stop();
}
