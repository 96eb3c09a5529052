//! Who may ask for how much: each client has a rate and a line of its own, and the clients take
//! turns, so that one that floods fills only its own share.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tonic::{Request, Status};

use super::connection::Admission;
use super::error;
use crate::model::limit::{
    MUTATION_WEIGHT, MUTATIONS_WAITING_MAX, MUTATIONS_WEIGHT_MAX, STREAM_MESSAGES_MAX,
};
use crate::state::job::Principal;

/// Wait that is asked of a client whose line is full: a line takes about as long to be worked off.
const LINE_WAIT: Duration = Duration::from_millis(200);
/// A client that was quiet may send what its rate allows in this time at once.
const BURST: Duration = Duration::from_secs(1);

/// Whom shares are given to: a principal on a connection. While there is no authentication all
/// principals are one, and their connections are what can be told apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Identity(Arc<Account>);

#[derive(Debug)]
struct Account {
    number: u64,
    principal: Principal,
    /// When all that was sent would have been sent, had it been sent at the rate.
    sent_until: Mutex<Option<Instant>>,
    /// Bytes of large requests that are coming in or being worked on.
    bytes: AtomicUsize,
    /// Room for the messages of its streams.
    stream_room: Arc<Semaphore>,
}

impl Default for Account {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            number,
            principal: Principal::Anonymous,
            sent_until: Mutex::new(None),
            bytes: AtomicUsize::new(0),
            stream_room: Arc::new(Semaphore::new(STREAM_MESSAGES_MAX)),
        }
    }
}

impl Identity {
    /// Who sends this request.
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        request.extensions().get::<Admission>().map(Admission::identity).unwrap_or_default()
    }

    /// In whose name commands are given.
    pub(super) fn principal(&self) -> &Principal {
        &self.0.principal
    }

    /// What it holds of requests' bytes.
    pub(super) fn bytes(&self) -> &AtomicUsize {
        &self.0.bytes
    }

    /// The room that all its streams share.
    pub(super) fn stream_room(&self) -> Arc<Semaphore> {
        self.0.stream_room.clone()
    }

    /// Counts one request against the rate; or tells how long to wait.
    fn count(&self, per_second: u32, now: Instant) -> Result<(), Duration> {
        let mut sent_until = self.0.sent_until.lock().unwrap_or_else(PoisonError::into_inner);
        let from = sent_until.map_or(now, |until| until.max(now));
        let over = from.duration_since(now).saturating_sub(BURST);
        if !over.is_zero() {
            return Err(over);
        }
        *sent_until = Some(from + Duration::from_secs(1) / per_second.max(1));
        Ok(())
    }
}

/// The way of mutations into the broker. What is inside weighs so much at the most; who finds it
/// full waits in a line of its client's, and the clients take turns.
///
/// Rejected: a low fixed rate, which would bite the one client of a quiet broker; one queue for
/// all, in which everyone waits behind whoever floods.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    turns: Arc<Mutex<Turns>>,
    per_second: u32,
}

#[derive(Debug)]
struct Turns {
    free: usize,
    /// Clients of whom something waits, next turn first.
    order: VecDeque<u64>,
    lines: HashMap<u64, VecDeque<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    weight: usize,
    enter: oneshot::Sender<Pass>,
}

/// Room inside the gate, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Pass {
    weight: usize,
    gate: Option<Gate>,
}

impl Gate {
    /// A gate through which each client may send so many mutations in a second.
    pub(super) fn new(per_second: u32) -> Self {
        let turns = Turns { free: MUTATIONS_WEIGHT_MAX, order: VecDeque::new(), lines: HashMap::new() };
        Self { turns: Arc::new(Mutex::new(turns)), per_second }
    }

    /// Waits for the client's turn with a mutation of so many `jobs`.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` with the time to wait, if the client is above its rate or its line is
    /// full.
    pub(super) async fn enter(&self, identity: &Identity, jobs: usize) -> Result<Pass, Status> {
        let full = |wait| error::too_many("the client sends more at once than its share", wait);
        if let Err(wait) = identity.count(self.per_second, Instant::now()) {
            let message = format!("the client sends more than {} mutations a second", self.per_second);
            return Err(error::too_many(&message, wait));
        }
        let weight = (MUTATION_WEIGHT + jobs).min(MUTATIONS_WEIGHT_MAX);
        let entered = {
            let mut turns = self.turns();
            if turns.order.is_empty() && turns.free >= weight {
                turns.free -= weight;
                return Ok(Pass { weight, gate: Some(self.clone()) });
            }
            let number = identity.0.number;
            let line = turns.lines.entry(number).or_default();
            if line.len() >= MUTATIONS_WAITING_MAX {
                return Err(full(LINE_WAIT));
            }
            let (enter, entered) = oneshot::channel();
            line.push_back(Waiting { weight, enter });
            if line.len() == 1 {
                turns.order.push_back(number);
            }
            entered
        };
        // Whoever waits is let in some time: the gate outlives its passes.
        entered.await.map_err(|_| full(LINE_WAIT))
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            let mut turns = gate.turns();
            turns.free += self.weight;
            turns.let_in(&gate);
        }
    }
}

impl Turns {
    /// Lets in whoever has room now, one of each client in turn. A heavy one is waited for: it
    /// would starve if lighter ones slipped by.
    fn let_in(&mut self, gate: &Gate) {
        while let Some(number) = self.order.front().copied() {
            let line = self.lines.entry(number).or_default();
            // Those who have gone away take no turn.
            while line.front().is_some_and(|waiting| waiting.enter.is_closed()) {
                line.pop_front();
            }
            match line.front() {
                Some(first) if first.weight > self.free => return,
                Some(_) | None => {}
            }
            if let Some(Waiting { weight, enter }) = line.pop_front() {
                let pass = Pass { weight, gate: Some(gate.clone()) };
                match enter.send(pass) {
                    Ok(()) => self.free -= weight,
                    // It went away just now; its pass must not come back through the lock that is held.
                    Err(mut pass) => pass.gate = None,
                }
            }
            self.order.pop_front();
            if self.lines.get(&number).is_some_and(|line| !line.is_empty()) {
                self.order.push_back(number);
            } else {
                self.lines.remove(&number);
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
    use crate::api::patience::retry_delay;

    type Entering<'a> = std::pin::Pin<Box<dyn Future<Output = Result<Pass, Status>> + 'a>>;

    fn entering<'a>(gate: &'a Gate, identity: &'a Identity, jobs: usize) -> Entering<'a> {
        Box::pin(gate.enter(identity, jobs))
    }

    /// What has come of it so far.
    async fn now(entering: &mut Entering<'_>) -> Option<Result<Pass, Status>> {
        poll_fn(|context| match entering.as_mut().poll(context) {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    #[tokio::test]
    async fn quiet_client_has_its_turn_next_however_long_the_line_of_another() {
        let (gate, flood, quiet) = (Gate::new(1_000_000), Identity::default(), Identity::default());
        let inside = gate.enter(&flood, MUTATIONS_WEIGHT_MAX).await.expect("an empty gate");
        let mut line: Vec<_> =
            (0..MUTATIONS_WAITING_MAX).map(|_| entering(&gate, &flood, MUTATIONS_WEIGHT_MAX)).collect();
        for waits in &mut line {
            assert!(now(waits).await.is_none());
        }
        let status = gate.enter(&flood, 1).await.expect_err("its line is full");
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(retry_delay(&status), Some(LINE_WAIT));
        let mut turn = entering(&gate, &quiet, 1);
        assert!(now(&mut turn).await.is_none());
        drop(inside);
        // One of the flood was there before; then it is the other's turn.
        let first = now(&mut line[0]).await.expect("room").expect("a pass");
        assert!(now(&mut turn).await.is_none());
        drop(first);
        let quiet_pass = now(&mut turn).await.expect("room").expect("a pass");
        assert!(now(&mut line[1]).await.is_none());
        drop(quiet_pass);
        assert!(now(&mut line[1]).await.is_some());
    }

    #[tokio::test]
    async fn room_of_those_who_have_gone_away_is_free_again() {
        let (gate, identity) = (Gate::new(1_000_000), Identity::default());
        let inside = gate.enter(&identity, MUTATIONS_WEIGHT_MAX).await.expect("an empty gate");
        let mut gone = entering(&gate, &identity, 1);
        let mut granted = entering(&gate, &identity, 1);
        assert!(now(&mut gone).await.is_none() && now(&mut granted).await.is_none());
        drop(gone);
        drop(inside);
        // It was let in, and goes away before it looks.
        drop(granted);
        let turns = gate.turns();
        assert_eq!((turns.free, turns.order.len(), turns.lines.len()), (MUTATIONS_WEIGHT_MAX, 0, 0));
    }

    #[test]
    fn client_above_its_rate_is_told_when_to_come_again() {
        let (identity, now) = (Identity::default(), Instant::now());
        let taken = (0..20).take_while(|_| identity.count(10, now).is_ok()).count();
        assert_eq!(taken, 11, "a second's worth at once, and one that begins the next");
        assert_eq!(identity.count(10, now), Err(Duration::from_millis(100)));
        assert_eq!(Identity::default().count(10, now), Ok(()), "another client");
        assert_eq!(identity.count(10, now + Duration::from_millis(100)), Ok(()), "as it was told");
        assert_eq!(identity.count(10, now + Duration::from_millis(100)), Err(Duration::from_millis(100)));
    }
}
