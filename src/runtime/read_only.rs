//! What a broker does while its journal can't be written, such as on a full disk: it answers reads from the durable
//! state, refuses the rest with the reason, and tries to write.

use std::time::Duration;

use tokio::sync::mpsc;

use super::error::CallError;
use super::handle::{Message, Shared};
use crate::broker::Reader;
use crate::clock::Clock;
use crate::journal::Journal;
use crate::model::id::Term;
use crate::model::plan::Policy;
use crate::state::State;

/// Wait before the journal is opened again after it failed.
pub(super) const REOPEN_WAIT: Duration = Duration::from_millis(500);

/// How a loop over messages ended.
#[derive(PartialEq, Eq)]
pub(super) enum Ended {
    Stopped,
    Failed,
}

/// Begins a term of the journal, and answers queries from `state` until that succeeds. Returns `None` if the broker is
/// stopped meanwhile.
///
/// The state stays that of the journal, as the journal is locked. Should it not be, the first append is refused.
pub(super) async fn read_until_writable(
    journal: &mut dyn Journal,
    state: State,
    policy: Policy,
    incoming: &mut mpsc::Receiver<Message>,
    shared: &Shared,
    clock: Clock,
) -> Option<(State, Term)> {
    let mut error = match journal.begin_term() {
        Ok(term) => {
            shared.set_write_error(None);
            return Some((state, term));
        }
        Err(error) => error,
    };
    let mut reader = Reader::new(state, Term::default(), policy, clock.now());
    loop {
        shared.set_write_error(Some(&error));
        let answer = |message| match message {
            Message::Query(query, reply) => drop(reply.send(Ok(reader.query(clock.now(), query)))),
            message => refuse(message, shared),
        };
        if for_a_while(REOPEN_WAIT, incoming, answer).await == Ended::Stopped {
            return None;
        }
        match journal.begin_term() {
            Ok(term) => {
                shared.set_write_error(None);
                return Some((reader.into_state(), term));
            }
            Err(again) => error = again,
        }
    }
}

/// Refuses all calls for `wait`, or until the broker is stopped.
pub(super) async fn refuse_for(
    wait: Duration,
    incoming: &mut mpsc::Receiver<Message>,
    shared: &Shared,
) -> Ended {
    for_a_while(wait, incoming, |message| refuse(message, shared)).await
}

/// Passes messages to `take` for `wait`, or until the broker is stopped.
async fn for_a_while(
    wait: Duration,
    incoming: &mut mpsc::Receiver<Message>,
    mut take: impl FnMut(Message),
) -> Ended {
    let taking = async {
        while let Some(message) = incoming.recv().await {
            if matches!(message, Message::Stop) {
                return;
            }
            take(message);
        }
    };
    match tokio::time::timeout(wait, taking).await {
        Ok(()) => Ended::Stopped,
        Err(_) => Ended::Failed,
    }
}

/// Refuses a call. A session of an agent ends: it comes back when orders can be made durable.
fn refuse(message: Message, shared: &Shared) {
    match message {
        Message::Request(_, reply) => drop(reply.send(Err(shared.write_error()))),
        Message::Query(_, reply) => drop(reply.send(Err(CallError::Unavailable))),
        Message::Open(..) | Message::FromAgent(..) | Message::Gone(_) | Message::Stop => {}
    }
}
