//! Admission of mutations: each client has a rate limit and a queue of its own, and the queues are
//! served round-robin, so that a client that floods the broker uses up only its own share.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tonic::Status;

use super::error;
use crate::model::limit::{
    MUTATION_WEIGHT, MUTATIONS_WAITING_MAX, MUTATIONS_WEIGHT_MAX, PAGES_AT_ONCE_MAX, STREAM_MESSAGES_MAX,
};
use crate::state::job::Principal;

/// Retry delay for a client whose queue is full: about the time in which a full queue drains.
const QUEUE_FULL_RETRY: Duration = Duration::from_millis(200);
/// A client that was idle may send what its rate allows in this time at once.
const BURST: Duration = Duration::from_secs(1);

/// The client that a request is charged to: a principal on a connection. While principals are not
/// authenticated all clients have the same one, and only their connections distinguish them.
#[derive(Clone, Debug, Default)]
pub(super) struct Identity(Arc<Account>);

#[derive(Debug)]
struct Account {
    number: u64,
    principal: Principal,
    /// Theoretical arrival time of the next request, see [`Identity::check_rate`].
    next_arrival: Mutex<Option<Instant>>,
    /// Bytes of large requests that are being received or processed.
    request_bytes: AtomicUsize,
    /// Bytes of responses that it has not read.
    unread_bytes: AtomicUsize,
    /// Permits for pages that are being made.
    pages: Arc<Semaphore>,
    /// Messages that its streams may still buffer.
    stream_permits: Arc<Semaphore>,
}

impl Default for Account {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            number,
            principal: Principal::Anonymous,
            next_arrival: Mutex::new(None),
            request_bytes: AtomicUsize::new(0),
            unread_bytes: AtomicUsize::new(0),
            pages: Arc::new(Semaphore::new(PAGES_AT_ONCE_MAX)),
            stream_permits: Arc::new(Semaphore::new(STREAM_MESSAGES_MAX)),
        }
    }
}

impl Identity {
    /// The principal that the client's commands are recorded under.
    pub(super) fn principal(&self) -> &Principal {
        &self.0.principal
    }

    /// Bytes of memory charged to the client's large requests now.
    pub(super) fn request_bytes(&self) -> &AtomicUsize {
        &self.0.request_bytes
    }

    /// Bytes of responses that the client has not read.
    pub(super) fn unread_bytes(&self) -> &AtomicUsize {
        &self.0.unread_bytes
    }

    /// Permits for pages that are made for the client at once.
    pub(super) fn pages(&self) -> Arc<Semaphore> {
        self.0.pages.clone()
    }

    /// Permits for buffered messages, shared by all streams of the client.
    pub(super) fn stream_permits(&self) -> Arc<Semaphore> {
        self.0.stream_permits.clone()
    }

    /// Counts one request against the rate, or returns how long the client must wait.
    ///
    /// This is the generic cell rate algorithm in its virtual-scheduling form (ITU-T I.371) with a
    /// tolerance of [`BURST`].
    fn check_rate(&self, per_second: u32, now: Instant) -> Result<(), Duration> {
        let mut next_arrival = self.0.next_arrival.lock().unwrap_or_else(PoisonError::into_inner);
        let from = next_arrival.map_or(now, |at| at.max(now));
        let over = from.duration_since(now).saturating_sub(BURST);
        if !over.is_zero() {
            return Err(over);
        }
        *next_arrival = Some(from + Duration::from_secs(1) / per_second.max(1));
        Ok(())
    }
}

/// Admits mutations to the broker up to a total weight. Beyond it they wait in a queue per client,
/// and the clients' queues are served round-robin.
///
/// Rejected: a low fixed rate, which would limit the only client of an idle broker; one queue for
/// all clients, in which everyone waits behind a client that floods.
#[derive(Clone, Debug)]
pub(super) struct AdmissionQueue {
    queues: Arc<Mutex<RoundRobin>>,
    per_second: u32,
}

#[derive(Debug)]
struct RoundRobin {
    free: usize,
    /// Clients with waiting mutations, in the order of service.
    order: VecDeque<u64>,
    waiting: HashMap<u64, VecDeque<Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    weight: usize,
    granted: oneshot::Sender<Permit>,
}

/// Permission to run one mutation. Dropping it releases its weight.
#[derive(Debug)]
pub(super) struct Permit {
    weight: usize,
    queue: Option<AdmissionQueue>,
}

impl AdmissionQueue {
    /// A queue that admits `per_second` mutations a second from each client.
    pub(super) fn new(per_second: u32) -> Self {
        let queues =
            RoundRobin { free: MUTATIONS_WEIGHT_MAX, order: VecDeque::new(), waiting: HashMap::new() };
        Self { queues: Arc::new(Mutex::new(queues)), per_second }
    }

    /// Waits until a mutation of so many `jobs` is admitted.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` with a retry delay, if the client exceeds its rate or its queue is full.
    pub(super) async fn acquire(&self, identity: &Identity, jobs: usize) -> Result<Permit, Status> {
        if let Err(wait) = identity.check_rate(self.per_second, Instant::now()) {
            let message = format!("the client exceeds {} mutations per second", self.per_second);
            return Err(error::too_many(&message, wait));
        }
        let weight = (MUTATION_WEIGHT + jobs).min(MUTATIONS_WEIGHT_MAX);
        let granted = {
            let mut queues = self.queues();
            if queues.order.is_empty() && queues.free >= weight {
                queues.free -= weight;
                return Ok(Permit { weight, queue: Some(self.clone()) });
            }
            let number = identity.0.number;
            let waiting = queues.waiting.entry(number).or_default();
            if waiting.len() >= MUTATIONS_WAITING_MAX {
                return Err(queue_full());
            }
            let (grant, granted) = oneshot::channel();
            waiting.push_back(Waiter { weight, granted: grant });
            if waiting.len() == 1 {
                queues.order.push_back(number);
            }
            granted
        };
        // Every waiter is admitted in the end: permits hold the queue, so it outlives them.
        granted.await.map_err(|_| queue_full())
    }

    fn queues(&self) -> MutexGuard<'_, RoundRobin> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn queue_full() -> Status {
    let message =
        format!("{MUTATIONS_WAITING_MAX} mutations of the client are waiting, no further one is queued");
    error::too_many(&message, QUEUE_FULL_RETRY)
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            let mut queues = queue.queues();
            queues.free += self.weight;
            queues.admit(&queue);
        }
    }
}

impl RoundRobin {
    /// Admits waiting mutations while capacity is free, one of each client per round. If the next
    /// one is too heavy, lighter ones wait behind it: it would starve if they overtook it.
    fn admit(&mut self, queue: &AdmissionQueue) {
        while let Some(number) = self.order.front().copied() {
            let waiting = self.waiting.entry(number).or_default();
            // Cancelled requests use up no round.
            while waiting.front().is_some_and(|waiter| waiter.granted.is_closed()) {
                waiting.pop_front();
            }
            match waiting.front() {
                Some(first) if first.weight > self.free => return,
                Some(_) | None => {}
            }
            if let Some(Waiter { weight, granted }) = waiting.pop_front() {
                let permit = Permit { weight, queue: Some(queue.clone()) };
                match granted.send(permit) {
                    Ok(()) => self.free -= weight,
                    // Cancelled just now. This thread has the lock, so dropping the permit must not take it.
                    Err(mut permit) => permit.queue = None,
                }
            }
            self.order.pop_front();
            if self.waiting.get(&number).is_some_and(|waiting| !waiting.is_empty()) {
                self.order.push_back(number);
            } else {
                self.waiting.remove(&number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use tonic::Code;

    use super::*;
    use crate::api::retry::retry_delay;

    type Acquiring<'a> = std::pin::Pin<Box<dyn Future<Output = Result<Permit, Status>> + 'a>>;

    fn acquiring<'a>(queue: &'a AdmissionQueue, identity: &'a Identity, jobs: usize) -> Acquiring<'a> {
        Box::pin(queue.acquire(identity, jobs))
    }

    /// Its outcome, if it has one now.
    async fn now(acquiring: &mut Acquiring<'_>) -> Option<Result<Permit, Status>> {
        poll_fn(|context| match acquiring.as_mut().poll(context) {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    #[tokio::test]
    async fn idle_client_is_served_next_however_long_the_queue_of_another() {
        let (queue, flood, idle) = (AdmissionQueue::new(1_000_000), Identity::default(), Identity::default());
        let running = queue.acquire(&flood, MUTATIONS_WEIGHT_MAX).await.expect("an empty queue");
        let mut waiting: Vec<_> =
            (0..MUTATIONS_WAITING_MAX).map(|_| acquiring(&queue, &flood, MUTATIONS_WEIGHT_MAX)).collect();
        for waiter in &mut waiting {
            assert!(now(waiter).await.is_none());
        }
        let status = queue.acquire(&flood, 1).await.expect_err("its queue is full");
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(retry_delay(&status), Some(QUEUE_FULL_RETRY));
        let mut idle_waits = acquiring(&queue, &idle, 1);
        assert!(now(&mut idle_waits).await.is_none());
        drop(running);
        // One of the flood was queued first; the idle client follows.
        let first = now(&mut waiting[0]).await.expect("free capacity").expect("a permit");
        assert!(now(&mut idle_waits).await.is_none());
        drop(first);
        let permit = now(&mut idle_waits).await.expect("free capacity").expect("a permit");
        assert!(now(&mut waiting[1]).await.is_none());
        drop(permit);
        assert!(now(&mut waiting[1]).await.is_some());
    }

    #[tokio::test]
    async fn cancelled_requests_release_their_capacity() {
        let (queue, identity) = (AdmissionQueue::new(1_000_000), Identity::default());
        let running = queue.acquire(&identity, MUTATIONS_WEIGHT_MAX).await.expect("an empty queue");
        let mut cancelled = acquiring(&queue, &identity, 1);
        let mut granted = acquiring(&queue, &identity, 1);
        assert!(now(&mut cancelled).await.is_none() && now(&mut granted).await.is_none());
        drop(cancelled);
        drop(running);
        // It has its permit, and is cancelled before it is polled again.
        drop(granted);
        let queues = queue.queues();
        assert_eq!((queues.free, queues.order.len(), queues.waiting.len()), (MUTATIONS_WEIGHT_MAX, 0, 0));
    }

    #[test]
    fn client_above_its_rate_gets_the_delay_after_which_it_is_admitted() {
        let (identity, now) = (Identity::default(), Instant::now());
        let admitted = (0..20).take_while(|_| identity.check_rate(10, now).is_ok()).count();
        assert_eq!(admitted, 11, "a burst of one second, and one that begins the next");
        assert_eq!(identity.check_rate(10, now), Err(Duration::from_millis(100)));
        assert_eq!(Identity::default().check_rate(10, now), Ok(()), "another client");
        let later = now + Duration::from_millis(100);
        assert_eq!(identity.check_rate(10, later), Ok(()), "after the delay");
        assert_eq!(identity.check_rate(10, later), Err(Duration::from_millis(100)));
    }
}
