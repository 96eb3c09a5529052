//! What a broker does while its journal can't be written, such as on a full disk: it answers reads from the durable
//! state, refuses the rest with the reason, and tries to write.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::sync::mpsc;

use super::error::CallError;
use super::handle::{Message, Shared};
use crate::broker::Reader;
use crate::clock::Clock;
use crate::journal::{Error, Journal};
use crate::model::id::Term;
use crate::model::plan::Policy;
use crate::state::State;

/// Wait between two tries to write the journal.
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// Begins a term of the journal, and answers queries from `state` until that succeeds. Returns `None` if the broker is
/// stopped meanwhile.
///
/// `failed` is why the journal could not be written last: then the next try waits, as it may fail likewise.
/// The state stays that of the journal, as the journal is locked. Should it not be, the first append is refused.
pub(super) async fn read_until_writable(
    journal: &mut dyn Journal,
    state: State,
    failed: Option<Error>,
    policy: Policy,
    incoming: &mut mpsc::Receiver<Message>,
    shared: &Shared,
    clock: Clock,
) -> Option<(State, Term)> {
    let mut error = match failed.map_or_else(|| journal.begin_term(), Err) {
        Ok(term) => return Some((state, term)),
        Err(error) => error,
    };
    let mut reader = Reader::new(state, policy, clock.now());
    loop {
        shared.set_write_error(Some(&error));
        let answer = |message| match message {
            Message::Query(query, reply) => drop(reply.send(Ok(reader.query(clock.now(), query)))),
            message => refuse(message, shared),
        };
        if take_for_a_while(incoming, answer).await.is_break() {
            return None;
        }
        match journal.begin_term() {
            Ok(term) => return Some((reader.into_state(), term)),
            Err(again) => error = again,
        }
    }
}

/// Refuses all calls for half a second. Breaks if the broker is stopped.
pub(super) async fn refuse_for_a_while(
    incoming: &mut mpsc::Receiver<Message>,
    shared: &Shared,
) -> ControlFlow<()> {
    take_for_a_while(incoming, |message| refuse(message, shared)).await
}

/// Passes messages to `take` for half a second. Breaks if the broker is stopped.
async fn take_for_a_while(
    incoming: &mut mpsc::Receiver<Message>,
    mut take: impl FnMut(Message),
) -> ControlFlow<()> {
    let taking = async {
        while let Some(message) = incoming.recv().await {
            if matches!(message, Message::Stop) {
                return;
            }
            take(message);
        }
    };
    match tokio::time::timeout(RETRY_WAIT, taking).await {
        Ok(()) => ControlFlow::Break(()),
        Err(_) => ControlFlow::Continue(()),
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
