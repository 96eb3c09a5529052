//! Trace of a seed as text: each input, and the effects of each state machine.

use weir::agent;
use weir::broker;

use super::World;
use super::event::{AgentEvent, BrokerEvent, Event};

/// Longest line, in characters; the rest is cut.
const LINE_MAX: usize = 1_200;

/// Prints an event, unless it has no effect or is of no interest in a trace.
pub(crate) fn event(world: &World, event: &Event) {
    let line = match event {
        Event::Fault(number) => {
            format!("FAULT {number}: {:?}", world.schedule.faults[*number].fault)
        }
        Event::Broker { host, incarnation, what } => {
            if world.brokers[*host].incarnation != *incarnation {
                return;
            }
            let what = match what {
                BrokerEvent::Wake { .. } => return,
                BrokerEvent::Frame { session, number, message } => {
                    format!("{session:?} #{number} {message:?}")
                }
                other => format!("{other:?}"),
            };
            format!("broker {host} <- {what}")
        }
        Event::Agent { agent, incarnation, what } => {
            let what = match what {
                AgentEvent::Wake { .. } => return,
                AgentEvent::BackendRequest(attempt, step) => format!("backend: {attempt} {step:?}"),
                _ if world.agents[*agent].incarnation != *incarnation => return,
                AgentEvent::Frame { session, number, message } => {
                    format!("{session:?} #{number} {message:?}")
                }
                other => format!("{other:?}"),
            };
            format!("agent {agent} <- {what}")
        }
        Event::Backend { agent, attempt, step } => format!("backend {agent}: {attempt} {step:?}"),
        Event::Act | Event::LeaseCheck { .. } | Event::DiskDone { .. } => return,
        other => format!("{other:?}"),
    };
    print_line!("{:>9} {}", world.now, short(line));
}

pub(crate) fn broker_effects(host: usize, effects: &[broker::Effect]) {
    for effect in effects {
        if !matches!(effect, broker::Effect::WakeAt(_)) {
            print_line!("          broker {host} -> {}", short(format!("{effect:?}")));
        }
    }
}

pub(crate) fn agent_effects(agent: usize, effects: &[agent::Effect]) {
    for effect in effects {
        if !matches!(effect, agent::Effect::WakeAt(_)) {
            print_line!("          agent {agent} -> {}", short(format!("{effect:?}")));
        }
    }
}

fn short(mut line: String) -> String {
    if let Some((at, _)) = line.char_indices().nth(LINE_MAX) {
        line.truncate(at);
        line.push('…');
    }
    line
}
