//! What a broker does over a gap that its clock shows.

use super::*;
use crate::model::spec::minimal;
use crate::state::fixture::{Fixture, submission};
use crate::state::token::RequestToken;

const HOUR_MS: u64 = 3_600_000;

fn submit() -> Request {
    let principal = Principal::Anonymous;
    let token = Some(RequestToken::new(&principal, "", "nightly", b"body"));
    let jobs = vec![submission("nightly", "", minimal())];
    Request { principal, token, command: Command::Submit { jobs } }
}

/// Steps, with a disk that is always done at once; returns what was answered.
fn replies(broker: &mut Broker, now: Timestamp, input: Input) -> Vec<Result<Reply, Rejection>> {
    let mut replies = Vec::new();
    let mut inputs = VecDeque::from([input]);
    while let Some(input) = inputs.pop_front() {
        for effect in broker.step(now, input) {
            match effect {
                Effect::Append { after, events, .. } => {
                    let through = events.last().map_or(after, |event| event.revision);
                    inputs.push_back(Input::Appended { through });
                }
                Effect::Reply { result, .. } => replies.push(result),
                _ => {}
            }
        }
    }
    replies
}

fn restart(state: State, now: Timestamp) -> Broker {
    let random = Random { turn: 7, journal: 7, key: 7 };
    Broker::new(state, Term(2), random, now)
}

#[test]
fn token_outlives_a_restart_and_a_sleep_by_its_full_time() {
    let mut world = Fixture::new();
    let first = world.request(&submit());
    let mut now = world.now.plus_ms(HOUR_MS);
    let mut broker = restart(world.state, now);
    let ask = |broker: &mut Broker, now| {
        replies(broker, now, Input::Request { call: CallId(1), request: submit() })
    };
    replies(&mut broker, now, Input::Wake);
    assert_eq!(ask(&mut broker, now), std::slice::from_ref(&first), "after a restart");
    now = now.plus_ms(HOUR_MS);
    replies(&mut broker, now, Input::Wake);
    assert_eq!(ask(&mut broker, now), std::slice::from_ref(&first), "after a sleep");
    for _ in 0..TOKEN_RETENTION_MS / 1_000 {
        now = now.plus_ms(1_000);
        replies(&mut broker, now, Input::Wake);
    }
    let late = ask(&mut broker, now);
    assert!(matches!(late[..], [Err(Rejection::AlreadyExists { .. })]), "{late:?}");
}
