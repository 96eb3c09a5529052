//! A seed as text: what comes in, and what each machine makes of it.

use weir::agent;
use weir::broker;

use super::agent::AgentEvent;
use super::broker::BrokerEvent;
use super::{Event, World};

/// Characters of a message before the rest is left out.
const LINE_MAX: usize = 1_200;

pub(crate) fn event(world: &World, event: &Event) {
    let line = match event {
        Event::Fault(number) => {
            format!("FAULT {number}: {:?}", world.schedule.faults[*number].fault)
        }
        Event::Broker { host, life, what } => {
            if world.brokers[*host].life != *life {
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
        Event::Agent { agent, life, what } => {
            let what = match what {
                AgentEvent::Wake { .. } => return,
                AgentEvent::Ask(attempt, step) => format!("backend: {attempt} {step:?}"),
                _ if world.agents[*agent].life != *life => return,
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
    say!("{:>9} {}", world.now, short(line));
}

pub(crate) fn broker_effects(host: usize, effects: &[broker::Effect]) {
    for effect in effects {
        if !matches!(effect, broker::Effect::WakeAt(_)) {
            say!("          broker {host} -> {}", short(format!("{effect:?}")));
        }
    }
}

pub(crate) fn agent_effects(agent: usize, effects: &[agent::Effect]) {
    for effect in effects {
        if !matches!(effect, agent::Effect::WakeAt(_)) {
            say!("          agent {agent} -> {}", short(format!("{effect:?}")));
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
