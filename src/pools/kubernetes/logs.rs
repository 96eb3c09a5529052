//! Output of pods, fetched into files. A file can be read from any byte offset, and after its pod is gone.
//!
//! A cluster returns both streams of a container as one, starting at any second of what its node still has.
//! While a task runs, its output is fetched only while it is being read. When it has ended, the rest is fetched.
//!
//! Per task there are three files: `N.log` has the output, `N.read` the position up to which it was fetched, and
//! `N.done` exists once the output is complete.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::io::{AsyncBufRead, AsyncReadExt};
use kube::api::LogParams;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};

use super::cluster::{Cluster, error_text, is_refusal, status_code};
use super::names;
use super::timestamped::{Position, TimestampedLog};
use crate::files;
use crate::model::backoff::Backoff;
use crate::model::id::AttemptId;
use crate::pools::{LogPart, OutputTimes, ReadLogs, Stream, output_times, retention};

/// The longest time without data before a fetch of an ended task's output fails.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a stream may take to reach its end by itself after its task has ended.
const STREAM_END_WAIT: Duration = Duration::from_millis(300);
/// How long the first read of a task's output waits for data.
const FIRST_READ_WAIT: Duration = Duration::from_millis(1_500);
/// The wait before a broken stream is requested again.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// The wait between two tries to fetch an ended task's output at which they end. The waits before, 1 s to 32 s,
/// add up to about a minute.
const RETRY_DELAY_END: Duration = Duration::from_secs(64);
/// Outputs of ended tasks that are fetched at once.
const FETCHES_MAX: usize = 16;
/// Outputs of running tasks that are streamed at once. Other readers get no new output until a stream ends.
const STREAMS_MAX: usize = 256;
/// How long output is streamed after it was last read.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(60);

/// A task of an attempt.
type Key = (AttemptId, u32);

/// Where an attempt's pods are.
#[derive(Clone, Default)]
struct PodLocation {
    namespace: String,
    /// The tasks' main containers by rank, where the name is not `names::CONTAINER`.
    containers: BTreeMap<u32, String>,
}

/// Why output could not be fetched.
struct FetchError {
    message: String,
    /// A later try may succeed.
    transient: bool,
}

/// The one task that may write an output file at a time.
struct Writer {
    /// Notified when the pod's task has ended.
    ended: Notify,
    /// When the output was last read.
    read_at: Mutex<Instant>,
}

impl Writer {
    fn new() -> Arc<Self> {
        Arc::new(Self { ended: Notify::new(), read_at: Mutex::new(Instant::now()) })
    }

    fn mark_read(&self) {
        *self.read_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns when the task has ended, or when the output was not read for `unread_timeout`.
    async fn until_done(&self, unread_timeout: Duration) {
        let unread = async {
            loop {
                let until = *self.read_at.lock().unwrap_or_else(PoisonError::into_inner) + unread_timeout;
                if until <= Instant::now() {
                    break;
                }
                tokio::time::sleep_until(until.into()).await;
            }
        };
        tokio::select! {
            () = self.ended.notified() => {}
            () = unread => {}
        }
    }
}

/// The outputs of a pool's tasks.
#[derive(Clone)]
pub(super) struct Logs {
    shared: Arc<Shared>,
    runtime: Handle,
}

struct Shared {
    cluster: OnceLock<Cluster>,
    folder: PathBuf,
    bytes_max: u64,
    /// Attempts whose output may still be fetched.
    locations: Mutex<BTreeMap<AttemptId, PodLocation>>,
    /// The writer locks: files that are being written.
    writers: Mutex<BTreeMap<Key, Arc<Writer>>>,
    /// Ended tasks whose output is not complete yet. No new stream may begin for them.
    finishing: Mutex<BTreeSet<Key>>,
    fetches: Semaphore,
}

impl Logs {
    /// Stores outputs in `folder`, at most `bytes_max` bytes of each task's. Must be called within a tokio runtime.
    pub(super) fn new(folder: PathBuf, bytes_max: u64) -> Self {
        let shared = Shared {
            cluster: OnceLock::new(),
            folder,
            bytes_max,
            locations: Mutex::default(),
            writers: Mutex::default(),
            finishing: Mutex::default(),
            fetches: Semaphore::new(FETCHES_MAX),
        };
        Self { shared: Arc::new(shared), runtime: Handle::current() }
    }

    /// Sets the cluster. Before that, no output can be fetched.
    pub(super) fn connect(&self, cluster: Cluster) {
        let _ = self.shared.cluster.set(cluster);
    }

    /// Sets the namespace of an attempt's pods.
    pub(super) fn set_location(&self, attempt: AttemptId, namespace: &str) {
        let mut locations = self.shared.locations.lock().unwrap_or_else(PoisonError::into_inner);
        locations.entry(attempt).or_default().namespace = namespace.to_owned();
    }

    /// Sets the name of a task's main container.
    pub(super) fn set_container(&self, attempt: AttemptId, task: u32, container: &str) {
        if container == names::CONTAINER {
            return;
        }
        let mut locations = self.shared.locations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(location) = locations.get_mut(&attempt) {
            location.containers.insert(task, container.to_owned());
        }
    }

    /// Removes an attempt whose pods are deleted. Its fetched output stays until its retention ends.
    pub(super) fn remove(&self, attempt: AttemptId) {
        self.shared.locations.lock().unwrap_or_else(PoisonError::into_inner).remove(&attempt);
        // Retention is counted from the folder's modification time.
        let folder = self.shared.folder.join(attempt.to_string());
        let _ = std::fs::File::open(folder).and_then(|folder| folder.set_modified(SystemTime::now()));
    }

    /// Fetches the rest of an ended task's output, as far as its node still has it, and marks it complete.
    /// `has_output` is false if there is nothing to fetch.
    pub(super) async fn finish(&self, attempt: AttemptId, task: u32, has_output: bool) {
        let key = (attempt, task);
        if self.shared.is_done(key) {
            return;
        }
        self.shared.finishing.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        if has_output {
            // A stream that is open most likely reaches its end by itself. Only one writer is allowed.
            tokio::time::sleep(STREAM_END_WAIT).await;
            while let Err(writer) = self.shared.lock_writer(key, &Writer::new()) {
                writer.ended.notify_one();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if let Err(error) = self.shared.fetch_all(key).await {
                tracing::warn!(%attempt, task, error, "a task's output can't be fetched, and is lost with its pod");
            }
        }
        if let Err(error) = self.shared.mark_done(key).await {
            tracing::warn!(%attempt, task, %error, "a task's output can't be marked complete");
        }
        if has_output {
            self.shared.unlock_writer(key);
        }
        self.shared.finishing.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// Removes output past its retention.
    pub(super) fn collect(&self) {
        let shared = self.shared.clone();
        self.runtime.spawn_blocking(move || {
            let in_use = |name: &std::ffi::OsStr| {
                let attempt = name.to_str().and_then(|name| name.parse().ok());
                attempt.is_some_and(|attempt| shared.location_of(attempt).is_some())
            };
            retention::collect(&shared.folder, in_use);
        });
    }
}

impl Shared {
    fn file(&self, (attempt, task): Key) -> PathBuf {
        self.folder.join(attempt.to_string()).join(format!("{task}.log"))
    }

    fn done_file(&self, (attempt, task): Key) -> PathBuf {
        self.folder.join(attempt.to_string()).join(format!("{task}.done"))
    }

    /// Has the position up to which the output was fetched.
    fn position_file(&self, (attempt, task): Key) -> PathBuf {
        self.folder.join(attempt.to_string()).join(format!("{task}.read"))
    }

    fn is_done(&self, key: Key) -> bool {
        self.done_file(key).exists()
    }

    async fn mark_done(&self, key: Key) -> io::Result<()> {
        let path = self.done_file(key);
        if let Some(folder) = path.parent() {
            tokio::fs::create_dir_all(folder).await?;
        }
        tokio::fs::write(path, "").await
    }

    /// Takes the writer lock of a task's file.
    ///
    /// # Errors
    /// The present writer, if there is one.
    fn lock_writer(&self, key: Key, own: &Arc<Writer>) -> Result<(), Arc<Writer>> {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        match writers.get(&key) {
            Some(other) => Err(other.clone()),
            None => {
                writers.insert(key, own.clone());
                Ok(())
            }
        }
    }

    fn unlock_writer(&self, key: Key) {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// Notes at a file's writer that the file is being read. Returns false if it has no writer.
    fn touch_writer(&self, key: Key) -> bool {
        let writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        writers.get(&key).inspect(|writer| writer.mark_read()).is_some()
    }

    fn location_of(&self, attempt: AttemptId) -> Option<PodLocation> {
        self.locations.lock().unwrap_or_else(PoisonError::into_inner).get(&attempt).cloned()
    }

    /// Fetches an ended task's output, and retries after transient errors.
    async fn fetch_all(&self, key: Key) -> Result<(), String> {
        let mut backoff = Backoff::new(RETRY_DELAY, RETRY_DELAY_END);
        loop {
            let wait = backoff.next_wait();
            let permit = self.fetches.acquire().await;
            let fetched = self.fetch(key, None).await;
            drop(permit);
            match fetched {
                Ok(()) => return Ok(()),
                Err(FetchError { transient: true, .. }) if wait < RETRY_DELAY_END => {}
                Err(FetchError { message, .. }) => return Err(message),
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Appends to a task's file what its pod has written beyond it: what exists now, or with `follow` everything
    /// until the task ends.
    async fn fetch(&self, key: Key, follow: Option<&Writer>) -> Result<(), FetchError> {
        let (Some(cluster), Some(location)) = (self.cluster.get(), self.location_of(key.0)) else {
            return Err(FetchError { message: "its pod is gone".to_owned(), transient: false });
        };
        let container = location.containers.get(&key.1).map_or(names::CONTAINER, String::as_str);
        // Without a position the pod's whole output is read again, and what the file has is skipped.
        let position: Option<Position> = files::read_json(&self.position_file(key)).ok().flatten();
        let parameters = LogParams {
            container: Some(container.to_owned()),
            follow: follow.is_some(),
            timestamps: true,
            since_time: position.and_then(|position| position.since()),
            ..LogParams::default()
        };
        let pods = cluster.pods(&location.namespace);
        let name = names::pod(key.0, key.1 as usize);
        let stream = tokio::time::timeout(STALL_TIMEOUT, pods.log_stream(&name, &parameters)).await;
        let timed_out = |_| FetchError { message: "its node does not answer".to_owned(), transient: true };
        // A kubelet that has just started has not yet read its pods, and answers 400 or 404.
        let is_transient =
            |error: &kube::Error| !is_refusal(error) || matches!(status_code(error), 400 | 404);
        let failed =
            |error: kube::Error| FetchError { message: error_text(&error), transient: is_transient(&error) };
        let stream = stream.map_err(timed_out)?.map_err(failed)?;
        let broken = |error: io::Error| FetchError { message: error.to_string(), transient: true };
        self.append(key, position, stream, follow).await.map_err(broken)
    }

    async fn append(
        &self,
        key: Key,
        position: Option<Position>,
        stream: impl AsyncBufRead,
        follow: Option<&Writer>,
    ) -> io::Result<()> {
        let path = self.file(key);
        if let Some(folder) = path.parent() {
            tokio::fs::create_dir_all(folder).await?;
        }
        let mut options = tokio::fs::OpenOptions::new();
        let mut file = options.create(true).append(true).open(&path).await?;
        let mut len = file.metadata().await?.len();
        if len == 0 {
            output_times::begin(&path)?;
        }
        let mut log = TimestampedLog::new(position, len);
        let (mut buffer, mut new) = (vec![0; 16 * 1024], Vec::new());
        let mut stream = std::pin::pin!(stream);
        while len < self.bytes_max {
            let read = stream.read(&mut buffer);
            // A running task may write nothing for any length of time.
            let count = match follow {
                Some(writer) => tokio::select! {
                    count = read => count?,
                    () = writer.until_done(UNREAD_TIMEOUT) => return Ok(()),
                },
                None => {
                    let timed_out = |_| io::Error::new(io::ErrorKind::TimedOut, "its node sent no more data");
                    tokio::time::timeout(STALL_TIMEOUT, read).await.map_err(timed_out)??
                }
            };
            if count == 0 {
                return log.kubelet_error().map_or(Ok(()), |error| Err(io::Error::other(error)));
            }
            new.clear();
            log.read(&buffer[..count], &mut new);
            let cuts = log.take_cuts();
            new.truncate(usize::try_from(self.bytes_max - len).unwrap_or(usize::MAX));
            if new.is_empty() {
                continue;
            }
            file.write_all(&new).await?;
            file.flush().await?;
            for cut in cuts.into_iter().filter(|cut| cut.len <= new.len()) {
                // Without its time, output is printed all the same.
                let _ = output_times::record(&path, len + cut.len as u64, cut.at);
            }
            len += new.len() as u64;
            if let Some(position) = log.position(len) {
                let path = self.position_file(key);
                tokio::task::spawn_blocking(move || files::replace_json_unsynced(&path, &position)).await??;
            }
        }
        Ok(())
    }

    /// Streams a task's output into its file, until the task ends or the output is no longer read. Does nothing
    /// if the file is complete or full, has a writer, or too many streams are open.
    fn follow(self: &Arc<Self>, key: Key, runtime: &Handle) {
        let writer = Writer::new();
        if self.finishing.lock().unwrap_or_else(PoisonError::into_inner).contains(&key) {
            return;
        }
        if self.len(key) >= self.bytes_max {
            return;
        }
        let is_full = self.writers.lock().unwrap_or_else(PoisonError::into_inner).len() >= STREAMS_MAX;
        if is_full || self.lock_writer(key, &writer).is_err() {
            return;
        }
        let shared = self.clone();
        runtime.spawn(async move {
            // Either the task has not started yet or the stream broke. The next read begins a new stream, after
            // this delay.
            if shared.fetch(key, Some(&writer)).await.is_err() || !shared.is_done(key) {
                let _ = tokio::time::timeout(RETRY_DELAY, writer.ended.notified()).await;
            }
            shared.unlock_writer(key);
        });
    }

    /// The length of a task's file in bytes; 0 if there is none.
    fn len(&self, key: Key) -> u64 {
        std::fs::metadata(self.file(key)).map_or(0, |found| found.len())
    }
}

impl ReadLogs for Logs {
    fn read(
        &self,
        attempt: AttemptId,
        task: u32,
        stream: Stream,
        offset: u64,
        bytes_max: usize,
    ) -> io::Result<LogPart> {
        let key = (attempt, task);
        // Checked before the file is read: what is appended later belongs to the next part.
        let complete = self.shared.is_done(key);
        if !complete && self.shared.location_of(attempt).is_none() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no output is stored for this task"));
        }
        if stream == Stream::Stderr {
            return Ok(LogPart { complete, ..LogPart::default() });
        }
        if !complete && !self.shared.touch_writer(key) {
            self.shared.follow(key, &self.runtime);
            // A client that reads only once should get the output that exists.
            let until = Instant::now() + FIRST_READ_WAIT;
            while Instant::now() < until && self.shared.len(key) <= offset && self.shared.touch_writer(key) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let file = match std::fs::File::open(self.shared.file(key)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(LogPart { complete, ..LogPart::default() });
            }
            opened => opened?,
        };
        let end = file.metadata()?.len();
        let offset = offset.min(end);
        let len = usize::try_from(end - offset).unwrap_or(usize::MAX).min(bytes_max);
        let mut data = vec![0; len];
        let count = file.read_at(&mut data, offset)?;
        data.truncate(count);
        Ok(LogPart { offset, data, end, complete })
    }

    fn times(&self, attempt: AttemptId, task: u32, _: Stream) -> io::Result<Option<OutputTimes>> {
        let key = (attempt, task);
        let position: Option<Position> = files::read_json(&self.shared.position_file(key)).ok().flatten();
        // What was appended after the position was stored is newer than it.
        let path = self.shared.file(key);
        let found = match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        let known = position.filter(|position| position.len() >= found.len());
        let rest = known.map_or_else(|| output_times::written_at(&found), |position| position.written_at());
        OutputTimes::open(&path, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_streamed_until_the_task_ends_or_reads_stop() {
        let (writer, unread_timeout) = (Writer::new(), Duration::from_millis(300));
        let reader = async {
            for _ in 0..10 {
                tokio::time::sleep(unread_timeout / 5).await;
                writer.mark_read();
            }
            Instant::now()
        };
        let (read_last, over) = tokio::join!(reader, async {
            writer.until_done(unread_timeout).await;
            Instant::now()
        });
        assert!(
            over >= read_last + unread_timeout,
            "it ended only {:?} after the last read",
            over.duration_since(read_last)
        );
        writer.mark_read();
        writer.ended.notify_one();
        let ended = writer.until_done(Duration::from_secs(3_600));
        tokio::time::timeout(Duration::from_secs(60), ended).await.expect("the task has ended");
    }
}
