//! One client: workers that take turns at the stream.
//!
//! Whoever has the receiving half takes one request, hands the half on and answers. So a request is carried out by the
//! thread that read it, as many requests are under way as there are workers, and there is no queue that could grow. Workers
//! are started as they are needed.

use std::io::BufReader;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;
use std::time::Instant;

use super::answer::{Desk, Taken};
use super::handshake::negotiate;
use super::output::Output;
use super::request::Request;
use super::{Ended, Event, Shared};
use crate::nbd::reader::Deadline;
use crate::nbd::wire::Command;

/// Room for some headers, so that a burst of requests takes one system call.
const HEADERS: usize = 512;

/// Talks to a client until one of the sides has enough.
pub(super) fn serve(shared: &Shared, client: u64, stream: &UnixStream) {
    let ended = match greet(shared, client, stream) {
        Ok(Some(desk)) => {
            let _counted = Counted::new(shared, client, &desk.export.name);
            Connection::new(shared, stream, &desk).run()
        }
        Ok(None) => Ok(()),
        Err(ended) => Err(ended),
    };
    // A client that goes without a word, and one that we send away, are no trouble.
    if let Err(reason) = ended
        && !matches!(reason, Ended::Left)
        && !shared.stopping.load(Ordering::SeqCst)
    {
        (shared.report)(&Event::Ended { client, reason: &reason });
    }
}

fn greet<'a>(
    shared: &'a Shared,
    client: u64,
    stream: &'a UnixStream,
) -> Result<Option<Desk<'a, &'a UnixStream>>, Ended> {
    let (settings, patience) = (&shared.settings, shared.settings.patience);
    let mut timed = Deadline { stream, end: Instant::now() + settings.handshake };
    let Some(session) = negotiate(&mut timed, &shared.exports, settings.handshake)? else { return Ok(None) };
    for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
        set(stream, Some(patience)).map_err(Ended::Lost)?;
    }
    Ok(Some(Desk {
        client,
        export: &shared.exports.list[session.export],
        session,
        output: Output::new(stream, session.structured, patience),
        lanes: &shared.lanes,
        long_read: &shared.long_read,
        report: &*shared.report,
        patience,
    }))
}

/// The transmission phase of a connection.
struct Connection<'a> {
    shared: &'a Shared,
    stream: &'a UnixStream,
    desk: &'a Desk<'a, &'a UnixStream>,
    input: Mutex<Option<BufReader<&'a UnixStream>>>,
    /// Why it ended; the first cause.
    ended: Mutex<Option<Ended>>,
    helpers: Helpers<'a>,
    /// Workers that wait for a request.
    idle: AtomicUsize,
}

impl<'a> Connection<'a> {
    fn new(shared: &'a Shared, stream: &'a UnixStream, desk: &'a Desk<'a, &'a UnixStream>) -> Self {
        Self {
            shared,
            stream,
            desk,
            input: Mutex::new(Some(BufReader::with_capacity(HEADERS, stream))),
            ended: Mutex::default(),
            helpers: Helpers { of_all: &shared.helpers, own: AtomicUsize::new(0) },
            idle: AtomicUsize::new(1),
        }
    }

    fn run(self) -> Result<(), Ended> {
        std::thread::scope(|scope| self.work(scope));
        self.ended.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// The life of a worker.
    fn work<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        // If the code behind the disk panics, the others must not wait for a client that waits for an answer.
        let _guard = HangUp(self.stream);
        let mut buf = Vec::new();
        loop {
            let taken = match self.next(scope, &mut buf) {
                Ok(Some(taken)) => taken,
                Ok(None) => return,
                // Nobody gets anything from the stream any more; what is under way is answered.
                Err(ended) => return self.note(ended),
            };
            if let Err(ended) = self.desk.answer(taken, &mut buf) {
                self.note(ended);
                return hang_up(self.stream, Shutdown::Both);
            }
            // One waits for this client; others may want more of them.
            if self.idle.load(Ordering::SeqCst) > 0 && self.helpers.are_short(self.shared.settings.helpers) {
                return self.helpers.give_back();
            }
            self.idle.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Takes one request off the stream; `None` when there will be no more.
    fn next<'s>(&'s self, scope: &'s Scope<'s, '_>, buf: &mut Vec<u8>) -> Result<Option<Taken>, Ended> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut stream) = input.take() else { return Ok(None) };
        let Some(request) = Request::read(&mut stream, self.shared.settings.patience)? else { return Ok(None) };
        if request.command() == Some(Command::Disconnect) || self.shared.stopping.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let taken = self.desk.take(request, &mut stream, buf)?;
        *input = Some(stream);
        let nobody_waits = self.idle.fetch_sub(1, Ordering::SeqCst) == 1;
        drop(input);
        if nobody_waits {
            self.reinforce(scope);
        }
        Ok(Some(taken))
    }

    /// Starts one more worker, if there may be more. Without it the client waits longer; nothing else happens.
    fn reinforce<'s>(&'s self, scope: &'s Scope<'s, '_>) {
        let settings = &self.shared.settings;
        if !self.helpers.take(settings.workers.saturating_sub(1), settings.helpers) {
            return;
        }
        self.idle.fetch_add(1, Ordering::SeqCst);
        let started = std::thread::Builder::new().name("nbd worker".into()).spawn_scoped(scope, || self.work(scope));
        if started.is_err() {
            self.idle.fetch_sub(1, Ordering::SeqCst);
            self.helpers.give_back();
        }
    }

    fn note(&self, ended: Ended) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(ended);
    }
}

/// The workers of a connection beside one: its part of those that all connections have together.
struct Helpers<'a> {
    of_all: &'a AtomicUsize,
    own: AtomicUsize,
}

impl Helpers<'_> {
    /// Takes one more, unless this connection or all together have so many.
    fn take(&self, most: usize, most_of_all: usize) -> bool {
        let one_more = |count: &AtomicUsize, most| {
            let more = |n| (n < most).then_some(n + 1);
            count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok()
        };
        if !one_more(self.of_all, most_of_all) {
            return false;
        }
        let taken = one_more(&self.own, most);
        if !taken {
            self.of_all.fetch_sub(1, Ordering::SeqCst);
        }
        taken
    }

    /// There is one less, and never less than none.
    fn give_back(&self) {
        let one_less = |n: usize| n.checked_sub(1);
        if self.own.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok() {
            self.of_all.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Whether this connection has some, and all together have more than half.
    fn are_short(&self, most_of_all: usize) -> bool {
        self.own.load(Ordering::SeqCst) > 0 && self.of_all.load(Ordering::SeqCst) * 2 > most_of_all
    }
}

impl Drop for Helpers<'_> {
    fn drop(&mut self) {
        self.of_all.fetch_sub(*self.own.get_mut(), Ordering::SeqCst);
    }
}

/// A client that has opened an export, as long as it has.
struct Counted<'a> {
    shared: &'a Shared,
    client: u64,
    export: &'a str,
}

impl<'a> Counted<'a> {
    fn new(shared: &'a Shared, client: u64, export: &'a str) -> Self {
        shared.clients.fetch_add(1, Ordering::SeqCst);
        (shared.report)(&Event::Opened { client, export });
        Self { shared, client, export }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.shared.clients.fetch_sub(1, Ordering::SeqCst);
        (self.shared.report)(&Event::Closed { client: self.client, export: self.export });
    }
}

/// Ends the connection when a worker panics.
struct HangUp<'a>(&'a UnixStream);

impl Drop for HangUp<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            hang_up(self.0, Shutdown::Both);
        }
    }
}

/// A stream that is closed already need not be closed.
pub(super) fn hang_up(stream: &UnixStream, how: Shutdown) {
    stream.shutdown(how).unwrap_or_default();
}
