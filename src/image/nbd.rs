//! A disk behind an NBD connection, as a source and as a target.
//!
//! What is zero is asked for a window ahead, never for the whole disk at once, and remembered while the reader is inside
//! the window.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::mem::cut;
use super::{Extent, ExtentKind, Image, ImageError, QemuNbd, Target, push};
use crate::nbd::{BASE_ALLOCATION, Client, NbdError, Options, STATE_ZERO};

/// How far ahead extents are asked for.
const WINDOW: u64 = 1 << 30;

/// A disk read over NBD.
pub struct NbdImage {
    // Declared before the server: it says goodbye first.
    client: Arc<Client>,
    _server: Option<QemuNbd>,
    name: String,
    discard_after_read: bool,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    range: Range<u64>,
    extents: Vec<Extent>,
}

impl NbdImage {
    /// Connects to `export` on the unix socket at `socket`; `name` is the disk's name in messages.
    ///
    /// # Errors
    /// When the connection cannot be made.
    pub fn connect(socket: &Path, export: &str, name: &str) -> Result<Self, ImageError> {
        let options = Options { meta_contexts: vec![BASE_ALLOCATION.into()], ..Options::default() };
        let client = Client::connect_unix(socket, export, &options).map_err(|e| error(name, "open", 0..0, e))?;
        Ok(Self::with_client(Arc::new(client), name))
    }

    /// The disk behind a connection that exists already; holes are known if it has the `base:allocation` context.
    pub fn with_client(client: Arc<Client>, name: &str) -> Self {
        Self { client, _server: None, name: name.into(), discard_after_read: false, window: Mutex::default() }
    }

    /// Ranges that were read are given back by a trim, if the export is writable. Only for exports whose purpose is to be
    /// read once, such as a fleecing image: the trimmed bytes are gone.
    #[must_use]
    pub fn discard_after_read(mut self, discard: bool) -> Self {
        let export = self.client.export();
        self.discard_after_read = discard && !export.read_only && export.can_trim;
        self
    }

    /// Keeps the server alive as long as the image.
    pub(super) fn with_server(mut self, server: QemuNbd) -> Self {
        self._server = Some(server);
        self
    }

    /// The connection, for questions beyond those of an image.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    fn ask(&self, range: &Range<u64>) -> Result<Vec<Extent>, NbdError> {
        let mut extents = Vec::new();
        let mut offset = range.start;
        for (len, flags) in self.client.block_status(BASE_ALLOCATION, range.start, range.end - range.start)? {
            let kind = if flags & STATE_ZERO != 0 { ExtentKind::Zero } else { ExtentKind::Data };
            push(&mut extents, Extent { offset, len, kind });
            offset += len;
        }
        Ok(extents)
    }
}

impl Image for NbdImage {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.client.size()
    }

    fn extents(&self, range: Range<u64>) -> Result<Vec<Extent>, ImageError> {
        super::check_range(&self.name, "block status", self.size(), &range)?;
        if range.is_empty() {
            return Ok(Vec::new());
        }
        if !self.client.has_context(BASE_ALLOCATION) {
            return Ok(vec![Extent { offset: range.start, len: range.end - range.start, kind: ExtentKind::Data }]);
        }
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let mut extents = Vec::new();
        let mut at = range.start;
        while at < range.end {
            if !window.range.contains(&at) {
                let ahead = at..self.size().min(at.saturating_add(WINDOW));
                let asked = self.ask(&ahead).map_err(|e| error(&self.name, "block status", ahead.clone(), e))?;
                *window = Window { range: ahead, extents: asked };
            }
            let end = range.end.min(window.range.end);
            for extent in cut(&window.extents, &(at..end)) {
                push(&mut extents, extent);
            }
            at = end;
        }
        Ok(extents)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
        let end = offset.saturating_add(buf.len() as u64);
        self.client.read_at(buf, offset).map_err(|e| error(&self.name, "read", offset..end, e))
    }

    fn limit_requests(&self, most: usize) {
        self.client.limit_requests(most);
    }

    fn release(&self, range: Range<u64>) {
        if self.discard_after_read && range.start < range.end {
            // A hint: space that is not given back now is given back when the fleecing image goes. A connection that
            // died of it is noticed by the next read.
            drop(self.client.trim(range.start, range.end - range.start));
        }
    }
}

/// A disk written over NBD.
pub struct NbdTarget {
    client: Arc<Client>,
    _server: Option<QemuNbd>,
    name: String,
    starts_zeroed: bool,
}

impl NbdTarget {
    /// Connects to the writable `export` on the unix socket at `socket`; `starts_zeroed`: it is known to read as zeros.
    ///
    /// # Errors
    /// When the connection cannot be made or the export is read-only.
    pub fn connect(socket: &Path, export: &str, name: &str, starts_zeroed: bool) -> Result<Self, ImageError> {
        let client =
            Client::connect_unix(socket, export, &Options::default()).map_err(|e| error(name, "open", 0..0, e))?;
        if client.export().read_only {
            return Err(error(name, "open", 0..0, NbdError::Unsupported("writing: it is read-only".into())));
        }
        Ok(Self { client: Arc::new(client), _server: None, name: name.into(), starts_zeroed })
    }

    /// Keeps the server alive as long as the target.
    pub(super) fn with_server(mut self, server: QemuNbd) -> Self {
        self._server = Some(server);
        self
    }
}

impl Target for NbdTarget {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.client.size()
    }

    fn starts_zeroed(&self) -> bool {
        self.starts_zeroed
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), ImageError> {
        let end = offset.saturating_add(buf.len() as u64);
        self.client.write_at(buf, offset).map_err(|e| error(&self.name, "write", offset..end, e))
    }

    fn write_zeroes(&self, range: Range<u64>) -> Result<(), ImageError> {
        super::check_range(&self.name, "write zeroes", self.size(), &range)?;
        let len = range.end - range.start;
        self.client.write_zeroes(range.start, len).map_err(|e| error(&self.name, "write zeroes", range, e))
    }

    fn flush(&self) -> Result<(), ImageError> {
        self.client.flush().map_err(|e| error(&self.name, "flush", 0..self.size(), e))
    }
}

impl fmt::Debug for NbdImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdImage").field("name", &self.name).field("size", &self.client.size()).finish_non_exhaustive()
    }
}

impl fmt::Debug for NbdTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdTarget").field("name", &self.name).field("size", &self.client.size()).finish_non_exhaustive()
    }
}

/// The image's error; the place is that of the server's error when it told one.
fn error(name: &str, op: &'static str, range: Range<u64>, error: NbdError) -> ImageError {
    let offset = match &error {
        NbdError::Server { offset, .. } => *offset,
        _ => range.start,
    };
    let len = range.end.saturating_sub(offset);
    ImageError { image: name.into(), op, offset, len, source: error.into() }
}
