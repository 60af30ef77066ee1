//! Who works on the kernel's questions, and for how long. Lanes of threads answer those that need the archive, so that a
//! slow read keeps nobody from asking something else; a question that is not answered in time is answered with an error,
//! because whoever asked cannot be ended before that.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use fuser::{Errno, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyLseek, ReplyOpen, ReplyXattr};

type Job = Box<dyn FnOnce(&mut Vec<u8>) + Send>;

/// Threads that work on one kind of question. What waits is bounded by the kernel, which asks only so much at once.
pub(super) struct Lane(Sender<Job>);

impl Lane {
    /// Starts `threads` of them, which end with the lane and what waits in it.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(super) fn new(name: &str, threads: usize) -> io::Result<Self> {
        let (sender, jobs) = unbounded::<Job>();
        for _ in 0..threads {
            let jobs = jobs.clone();
            let work = move || {
                let mut buf = Vec::new();
                for job in jobs {
                    // Whoever asked gets an error, since the answer is dropped; the others still get theirs.
                    if catch_unwind(AssertUnwindSafe(|| job(&mut buf))).is_err() {
                        buf = Vec::new();
                    }
                }
            };
            std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
        }
        Ok(Self(sender))
    }

    /// Does this when it is its turn; the buffer is the thread's own and holds anything.
    pub(super) fn run(&self, job: impl FnOnce(&mut Vec<u8>) + Send + 'static) {
        // The threads end after the lane only. If it were otherwise, the answer would be dropped, which is an error.
        self.0.send(Box::new(job)).unwrap_or_default();
    }
}

/// A reply that can be an error.
pub(super) trait Refuse: Send + 'static {
    /// Replies with an error.
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

refuse!(ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyLseek, ReplyOpen, ReplyXattr);

struct Waiting {
    until: Instant,
    give_up: Box<dyn FnOnce() + Send>,
}

#[derive(Default)]
struct State {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
    ended: bool,
}

struct Shared {
    limit: Duration,
    state: Mutex<State>,
    changed: Condvar,
    say: Box<dyn Fn() + Send + Sync>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) {
        let mut state = self.lock();
        while !state.ended {
            // The limit is the same for all: the first that asked is the first that has waited too long.
            let first = state.waiting.first_key_value().map(|(_, waiting)| waiting.until);
            let left = first.map(|until| until.saturating_duration_since(Instant::now()));
            match left {
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    let late = state.waiting.pop_first();
                    drop(state);
                    if let Some((_, late)) = late {
                        (self.say)();
                        (late.give_up)();
                    }
                    state = self.lock();
                }
                Some(left) => {
                    state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}

/// Answers what nobody else answered in time.
pub(super) struct Patience(Arc<Shared>);

impl Patience {
    /// Questions may take as long as `limit`; `say` is called for each that takes longer.
    ///
    /// # Errors
    /// When the thread cannot be started that watches over them.
    pub(super) fn new(limit: Duration, say: impl Fn() + Send + Sync + 'static) -> io::Result<Self> {
        let shared = Shared { limit, state: Mutex::default(), changed: Condvar::new(), say: Box::new(say) };
        let shared = Arc::new(shared);
        let watched = Arc::clone(&shared);
        std::thread::Builder::new().name("patience".to_owned()).spawn(move || watched.watch())?;
        Ok(Self(shared))
    }

    /// From now on the time of this reply runs.
    pub(super) fn begin<R: Refuse>(&self, reply: R) -> Answer<R> {
        let slot = Arc::new(Mutex::new(Some(reply)));
        let late = Arc::clone(&slot);
        let give_up = Box::new(move || {
            if let Some(reply) = late.lock().unwrap_or_else(PoisonError::into_inner).take() {
                reply.refuse(Errno::EIO);
            }
        });
        let mut state = self.0.lock();
        let number = state.next;
        state.next += 1;
        state.waiting.insert(number, Waiting { until: Instant::now() + self.0.limit, give_up });
        if state.waiting.len() == 1 {
            self.0.changed.notify_one();
        }
        Answer { slot, number, shared: Arc::clone(&self.0) }
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_one();
    }
}

/// A reply whose time runs. Dropped, it is an I/O error.
pub(super) struct Answer<R: Refuse> {
    slot: Arc<Mutex<Option<R>>>,
    number: u64,
    shared: Arc<Shared>,
}

impl<R: Refuse> Answer<R> {
    /// Answers, unless it is too late.
    pub(super) fn with(self, answer: impl FnOnce(R)) {
        let reply = self.slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reply) = reply {
            answer(reply);
        }
    }
}

impl<R: Refuse> Drop for Answer<R> {
    fn drop(&mut self) {
        let waiting = self.shared.lock().waiting.remove(&self.number);
        let left = self.slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(waiting);
        if let Some(reply) = left {
            reply.refuse(Errno::EIO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Receiver, unbounded};

    struct Asked(Sender<i32>);

    impl Refuse for Asked {
        fn refuse(self, errno: Errno) {
            self.0.send(errno.code()).unwrap();
        }
    }

    fn asked() -> (Asked, Receiver<i32>) {
        let (sender, receiver) = unbounded();
        (Asked(sender), receiver)
    }

    #[test]
    fn every_question_has_one_answer() {
        let late = Arc::new(Mutex::new(0));
        let count = Arc::clone(&late);
        let patience = Patience::new(Duration::from_secs(60), || panic!("nothing takes that long")).unwrap();
        let lane = Lane::new("lane", 2).unwrap();
        let (reply, answers) = asked();
        let answer = patience.begin(reply);
        lane.run(move |_| answer.with(|reply| reply.0.send(0).unwrap()));
        assert_eq!(answers.iter().collect::<Vec<_>>(), [0]);
        // One that is forgotten, and one whose thread panics.
        let (reply, answers) = asked();
        drop(patience.begin(reply));
        assert_eq!(answers.iter().collect::<Vec<_>>(), [libc::EIO]);
        let (reply, answers) = asked();
        let answer = patience.begin(reply);
        lane.run(move |_| {
            let _answer = answer;
            panic!("as planned");
        });
        assert_eq!(answers.iter().collect::<Vec<_>>(), [libc::EIO]);
        let patience = Patience::new(Duration::from_millis(50), move || *count.lock().unwrap() += 1).unwrap();
        // Both threads hang: who asks gets an error all the same, in time, and once.
        let (go, wait) = unbounded::<()>();
        let all: Vec<_> = (0..4)
            .map(|_| {
                let (reply, answers) = asked();
                let (answer, wait) = (patience.begin(reply), wait.clone());
                lane.run(move |_| {
                    wait.recv().unwrap_err();
                    answer.with(|reply| reply.0.send(0).unwrap());
                });
                answers
            })
            .collect();
        for answers in &all {
            assert_eq!(answers.recv().unwrap(), libc::EIO);
        }
        drop(go);
        for answers in all {
            assert_eq!(answers.iter().count(), 0);
        }
        assert_eq!(*late.lock().unwrap(), 4);
    }
}
