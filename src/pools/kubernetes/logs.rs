//! Output of pods: fetched into files, so that it can be read from any byte on, and after its pod is
//! gone.
//!
//! A cluster gives both streams of a container as one, from any second of what its node still has. While a
//! task runs its output is fetched only as long as somebody reads it; when it has ended, all of it is.

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

use super::cluster::{Cluster, code, is_refusal, said};
use super::names;
use super::timestamped::{Mark, TimestampedLog};
use crate::model::id::AttemptId;
use crate::pools::{LogPart, ReadLogs, Stream, retention, saved};

/// How long a fetch may stand still before it is given up.
const STILL_MAX: Duration = Duration::from_secs(20);
/// How long a stream that is followed may take to its end after its task's.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// How long a reader waits that is the first one.
const FIRST_WORDS: Duration = Duration::from_millis(1_500);
/// Before a stream that broke off is asked for again.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest wait before another try to fetch an ended task's: about a minute in all.
const AGAIN_MAX: Duration = Duration::from_secs(32);
/// Outputs of ended tasks that are fetched at once.
const FETCHES_MAX: usize = 16;
/// Outputs of running tasks that are followed at once; other readers wait until some are no longer read.
const FOLLOWED_MAX: usize = 256;
/// How long output is followed that nobody reads any more.
const UNREAD_MAX: Duration = Duration::from_secs(60);

/// A task of an attempt.
type Key = (AttemptId, u32);

/// Where the pods of an attempt are.
#[derive(Clone, Default)]
struct Place {
    namespace: String,
    /// The containers of tasks that are not called as Weir calls them, by rank.
    containers: BTreeMap<u32, String>,
}

/// Why output was not fetched, and whether another try may.
struct Missed {
    why: String,
    passes: bool,
}

/// Who writes an output's file.
struct Follower {
    /// Tells that the task has ended.
    ended: Notify,
    read_at: Mutex<Instant>,
}

impl Follower {
    fn new() -> Arc<Self> {
        Arc::new(Self { ended: Notify::new(), read_at: Mutex::new(Instant::now()) })
    }

    fn is_read(&self) {
        *self.read_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns when the task has ended, or nobody has read for so long.
    async fn is_over(&self, unread_max: Duration) {
        let unread = async {
            loop {
                let until = *self.read_at.lock().unwrap_or_else(PoisonError::into_inner) + unread_max;
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
    /// Where the pods are that have output to be fetched.
    places: Mutex<BTreeMap<AttemptId, Place>>,
    /// Outputs that are being written.
    following: Mutex<BTreeMap<Key, Arc<Follower>>>,
    /// Outputs of ended tasks that are not whole yet: nobody else may begin to follow them.
    finishing: Mutex<BTreeSet<Key>>,
    fetches: Semaphore,
}

impl Logs {
    /// Keeps outputs in a folder, at most so many bytes of each task's.
    pub(super) fn new(folder: PathBuf, bytes_max: u64) -> Self {
        let shared = Shared {
            cluster: OnceLock::new(),
            folder,
            bytes_max,
            places: Mutex::default(),
            following: Mutex::default(),
            finishing: Mutex::default(),
            fetches: Semaphore::new(FETCHES_MAX),
        };
        Self { shared: Arc::new(shared), runtime: Handle::current() }
    }

    /// The cluster stands: output can be fetched from now on.
    pub(super) fn connect(&self, cluster: Cluster) {
        let _ = self.shared.cluster.set(cluster);
    }

    /// Where the pods of an attempt are.
    pub(super) fn place(&self, attempt: AttemptId, namespace: &str) {
        let mut places = self.shared.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.entry(attempt).or_default().namespace = namespace.to_owned();
    }

    /// The container that is a task is called so.
    pub(super) fn name_container(&self, attempt: AttemptId, task: u32, container: &str) {
        if container == names::CONTAINER {
            return;
        }
        let mut places = self.shared.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.get_mut(&attempt) {
            place.containers.insert(task, container.to_owned());
        }
    }

    /// The attempt's pods are to go. What was fetched stays for its time.
    pub(super) fn leave(&self, attempt: AttemptId) {
        self.shared.places.lock().unwrap_or_else(PoisonError::into_inner).remove(&attempt);
        // Its retention begins now.
        let folder = self.shared.folder.join(attempt.to_string());
        let _ = std::fs::File::open(folder).and_then(|folder| folder.set_modified(SystemTime::now()));
    }

    /// Fetches all that an ended task has written, as far as its node still has it.
    pub(super) async fn finish(&self, attempt: AttemptId, task: u32, began: bool) {
        let key = (attempt, task);
        if self.shared.is_done(key) {
            return;
        }
        self.shared.finishing.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        if began {
            // Whoever follows it comes to its end by itself, most likely. One at a time may write.
            tokio::time::sleep(LAST_WORDS).await;
            while let Err(successor) = self.shared.take_pen(key, &Follower::new()) {
                successor.ended.notify_one();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if let Err(error) = self.shared.fetch_all(key).await {
                tracing::warn!(%attempt, task, error, "a task's output can't be fetched, and is lost with its pod");
            }
        }
        if let Err(error) = self.shared.mark_done(key).await {
            tracing::warn!(%attempt, task, %error, "a task's output can't be kept");
        }
        if began {
            self.shared.put_pen_down(key);
        }
        self.shared.finishing.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// Removes output past its retention.
    pub(super) fn collect(&self) {
        let shared = self.shared.clone();
        self.runtime.spawn_blocking(move || {
            let in_use = |name: &std::ffi::OsStr| {
                let attempt = name.to_str().and_then(|name| name.parse().ok());
                attempt.is_some_and(|attempt| shared.place_of(attempt).is_some())
            };
            retention::collect(&shared.folder, in_use);
        });
    }
}

impl Shared {
    fn file(&self, (attempt, task): Key) -> PathBuf {
        self.folder.join(attempt.to_string()).join(format!("{task}.log"))
    }

    fn mark(&self, (attempt, task): Key) -> PathBuf {
        self.folder.join(attempt.to_string()).join(format!("{task}.done"))
    }

    /// Where it is written how far the file goes.
    fn note(&self, (attempt, task): Key) -> PathBuf {
        self.folder.join(attempt.to_string()).join(format!("{task}.read"))
    }

    fn is_done(&self, key: Key) -> bool {
        self.mark(key).exists()
    }

    async fn mark_done(&self, key: Key) -> io::Result<()> {
        let mark = self.mark(key);
        if let Some(folder) = mark.parent() {
            tokio::fs::create_dir_all(folder).await?;
        }
        tokio::fs::write(mark, "").await
    }

    /// One at a time may write a task's file. Returns who does, if somebody else is at it.
    fn take_pen(&self, key: Key, own: &Arc<Follower>) -> Result<(), Arc<Follower>> {
        let mut following = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        match following.get(&key) {
            Some(other) => Err(other.clone()),
            None => {
                following.insert(key, own.clone());
                Ok(())
            }
        }
    }

    fn put_pen_down(&self, key: Key) {
        self.following.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// Tells whoever writes a task's file that it is read; `false` if nobody writes it.
    fn is_being_written(&self, key: Key) -> bool {
        let following = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        following.get(&key).inspect(|successor| successor.is_read()).is_some()
    }

    fn place_of(&self, attempt: AttemptId) -> Option<Place> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).get(&attempt).cloned()
    }

    /// Fetches what an ended task has written, again where something that passes keeps it away.
    async fn fetch_all(&self, key: Key) -> Result<(), String> {
        let mut wait = AGAIN;
        loop {
            let permit = self.fetches.acquire().await;
            let fetched = self.fetch(key, None).await;
            drop(permit);
            match fetched {
                Ok(()) => return Ok(()),
                Err(Missed { passes: true, .. }) if wait <= AGAIN_MAX => {}
                Err(Missed { why, .. }) => return Err(why),
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
    }

    /// Adds to a task's file what its pod has written beyond it: what there is, or all that comes until
    /// the task has ended.
    async fn fetch(&self, key: Key, follow: Option<&Follower>) -> Result<(), Missed> {
        let (Some(cluster), Some(place)) = (self.cluster.get(), self.place_of(key.0)) else {
            return Err(Missed { why: "its pod is gone".to_owned(), passes: false });
        };
        let container = place.containers.get(&key.1).map_or(names::CONTAINER, String::as_str);
        // Without it all is read again.
        let mark: Option<Mark> = saved::read(&self.note(key)).ok().flatten();
        let parameters = LogParams {
            container: Some(container.to_owned()),
            follow: follow.is_some(),
            timestamps: true,
            since_time: mark.and_then(|mark| mark.since()),
            ..LogParams::default()
        };
        let pods = cluster.pods(&place.namespace);
        let name = names::pod(key.0, key.1 as usize);
        let stream = tokio::time::timeout(STILL_MAX, pods.log_stream(&name, &parameters)).await;
        let silent = |_| Missed { why: "its node does not answer".to_owned(), passes: true };
        // A kubelet that has just begun doesn't know its pods yet.
        let may_pass = |error: &kube::Error| !is_refusal(error) || matches!(code(error), 400 | 404);
        let failed = |error: kube::Error| Missed { why: said(&error), passes: may_pass(&error) };
        let stream = stream.map_err(silent)?.map_err(failed)?;
        let broken = |error: io::Error| Missed { why: error.to_string(), passes: true };
        self.append(key, mark, stream, follow).await.map_err(broken)
    }

    async fn append(
        &self,
        key: Key,
        mark: Option<Mark>,
        stream: impl AsyncBufRead,
        follow: Option<&Follower>,
    ) -> io::Result<()> {
        let path = self.file(key);
        if let Some(folder) = path.parent() {
            tokio::fs::create_dir_all(folder).await?;
        }
        let mut options = tokio::fs::OpenOptions::new();
        let mut file = options.create(true).append(true).open(path).await?;
        let mut len = file.metadata().await?.len();
        let mut stamped = TimestampedLog::new(mark, len);
        let (mut buffer, mut new) = (vec![0; 16 * 1024], Vec::new());
        let mut stream = std::pin::pin!(stream);
        while len < self.bytes_max {
            let read = stream.read(&mut buffer);
            // A task that is followed may be silent for as long as it likes.
            let count = match follow {
                Some(successor) => tokio::select! {
                    count = read => count?,
                    () = successor.is_over(UNREAD_MAX) => return Ok(()),
                },
                None => {
                    let silent = |_| io::Error::new(io::ErrorKind::TimedOut, "its node fell silent");
                    tokio::time::timeout(STILL_MAX, read).await.map_err(silent)??
                }
            };
            if count == 0 {
                return stamped.complaint().map_or(Ok(()), |complaint| Err(io::Error::other(complaint)));
            }
            new.clear();
            stamped.read(&buffer[..count], &mut new);
            new.truncate(usize::try_from(self.bytes_max - len).unwrap_or(usize::MAX));
            if new.is_empty() {
                continue;
            }
            file.write_all(&new).await?;
            file.flush().await?;
            len += new.len() as u64;
            if let Some(mark) = stamped.mark(len) {
                let note = self.note(key);
                tokio::task::spawn_blocking(move || saved::write(&note, &mark)).await??;
            }
        }
        Ok(())
    }

    fn follow(self: &Arc<Self>, key: Key, runtime: &Handle) {
        let successor = Follower::new();
        if self.finishing.lock().unwrap_or_else(PoisonError::into_inner).contains(&key) {
            return;
        }
        if self.len(key) >= self.bytes_max {
            return;
        }
        let crowded = self.following.lock().unwrap_or_else(PoisonError::into_inner).len() >= FOLLOWED_MAX;
        if crowded || self.take_pen(key, &successor).is_err() {
            return;
        }
        let shared = self.clone();
        runtime.spawn(async move {
            // It may not have begun yet, or it broke off: readers that still wait ask again.
            if shared.fetch(key, Some(&successor)).await.is_err() || !shared.is_done(key) {
                let _ = tokio::time::timeout(AGAIN, successor.ended.notified()).await;
            }
            shared.put_pen_down(key);
        });
    }

    /// How long a task's file is, or 0 where there is none.
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
        // Before the file: what is added later belongs to the next part.
        let complete = self.shared.is_done(key);
        if !complete && self.shared.place_of(attempt).is_none() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "nothing is kept of its output, if it had any",
            ));
        }
        if stream == Stream::Stderr {
            return Ok(LogPart { complete, ..LogPart::default() });
        }
        if !complete && !self.shared.is_being_written(key) {
            self.shared.follow(key, &self.runtime);
            // Whoever asks but once should see what there is.
            let until = Instant::now() + FIRST_WORDS;
            while Instant::now() < until
                && self.shared.len(key) <= offset
                && self.shared.is_being_written(key)
            {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_followed_until_the_task_ends_or_nobody_reads() {
        let (successor, patience) = (Follower::new(), Duration::from_millis(300));
        let reader = async {
            for _ in 0..10 {
                tokio::time::sleep(patience / 5).await;
                successor.is_read();
            }
            Instant::now()
        };
        let (read_last, over) = tokio::join!(reader, async {
            successor.is_over(patience).await;
            Instant::now()
        });
        assert!(
            over >= read_last + patience,
            "it was read, until {:?} before",
            over.duration_since(read_last)
        );
        successor.is_read();
        successor.ended.notify_one();
        let ended = successor.is_over(Duration::from_secs(3_600));
        tokio::time::timeout(Duration::from_secs(60), ended).await.expect("the task has ended");
    }
}
