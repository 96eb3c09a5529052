//! Faults strike, and in the end all is well again.

use weir::agent::Input;
use weir::model::attempt::OutcomeKind;
use weir::model::id::AttemptId;

use super::network::Weather;
use super::schedule::{Fault, NodeChange};
use super::{Event, World};

/// Until a fault that finds nothing to strike is tried again.
const AGAIN_MS: u64 = 700;

impl World {
    /// Carries out a fault of the schedule.
    pub(crate) fn strike(&mut self, number: usize) -> Result<(), String> {
        let fault = self.schedule.faults[number].fault.clone();
        let writer = self.writer();
        let down = match &fault {
            Fault::CrashBroker { .. } => writer.is_none(),
            Fault::CrashAgent { agent, .. } => self.agents[*agent].machine.is_none(),
            _ => false,
        };
        if down && self.faulty() {
            // Nothing is there to crash: it will be.
            self.after(AGAIN_MS, Event::Fault(number));
            return Ok(());
        }
        match fault {
            Fault::CrashBroker { after_effects, tail, down_ms } => {
                if let Some(host) = writer {
                    self.plan_crash(host, after_effects, tail, down_ms);
                }
            }
            Fault::PauseBroker { ms } => {
                if let Some(host) = writer {
                    self.brokers[host].paused = true;
                    self.after(ms, Event::ResumeBroker { host });
                }
            }
            Fault::Takeover => {
                let free = (0..self.brokers.len()).find(|host| self.brokers[*host].machine.is_none());
                if let Some(host) = free.filter(|_| self.fork.is_none() && writer.is_some()) {
                    self.start_broker_on(host)?;
                }
            }
            Fault::FailAppend { tail } => {
                if let Some(host) = writer {
                    self.fail_next_append(host, tail);
                }
            }
            Fault::SlowDisk { ms, append_ms } => self.slow_disk = (self.now + ms, append_ms),
            Fault::OlderDisk { missing_permille, ms } => self.go_back(missing_permille, ms)?,
            Fault::Snapshot => {
                let machine = writer.and_then(|host| self.brokers[host].machine.as_mut());
                machine.into_iter().for_each(weir::broker::Broker::begin_snapshot);
            }
            Fault::BrokerClock { jump_ms, drift_ppm } => {
                let clock = writer.and_then(|host| self.brokers[host].clock.as_mut());
                clock.into_iter().for_each(|clock| clock.disturb(self.now, jump_ms, drift_ppm));
            }
            Fault::CrashAgent { agent, after_effects, down_ms } => {
                self.plan_agent_crash(agent, after_effects, down_ms);
            }
            Fault::PauseAgent { agent, ms } => {
                self.agents[agent].paused = true;
                self.after(ms, Event::ResumeAgent { agent });
            }
            Fault::AgentClock { agent, jump_ms, drift_ppm } => {
                self.agents[agent].clock.disturb(self.now, jump_ms, drift_ppm);
            }
            Fault::Reset { agent } => {
                if let Some(session) = self.agents[agent].session {
                    self.reset_link(session);
                }
            }
            Fault::Partition { agent, cut, ms } => self.network.cut(agent, cut, self.now + ms),
            Fault::Weather { agent, ms, loss, repeat, reorder, delay_ms } => {
                let weather = Weather { until: self.now + ms, loss, repeat, reorder, delay_ms };
                self.network.set_weather(agent, weather);
            }
            Fault::ClientWeather { ms, loss, delay_ms } => {
                self.client.set_weather(Weather {
                    until: self.now + ms,
                    loss,
                    delay_ms,
                    ..Weather::default()
                });
            }
            Fault::Nodes { agent, change } => self.change_nodes(agent, change)?,
            Fault::Lie { agent, lie } => self.lie(agent, lie)?,
        }
        Ok(())
    }

    /// From now on nothing goes wrong, and all that stood still goes on.
    pub(crate) fn heal(&mut self) -> Result<(), String> {
        self.network.heal();
        self.client.set_weather(Weather::default());
        self.slow_disk = (0, 0);
        for agent in 0..self.agents.len() {
            let nodes = self.agents[agent].backend.mend();
            self.resume_agent(agent)?;
            self.tell_agent(agent, Input::NodesChanged { nodes, removed: Vec::new() })?;
        }
        for host in 0..self.brokers.len() {
            self.resume_broker(host)?;
        }
        if self.fork.is_some() {
            self.restore_disk()?;
        }
        Ok(())
    }

    /// A node goes, comes, shrinks, is relabelled, breaks.
    fn change_nodes(&mut self, index: usize, change: NodeChange) -> Result<(), String> {
        let backend = &mut self.agents[index].backend;
        let (mut nodes, mut removed) = (Vec::new(), Vec::new());
        match change {
            NodeChange::Remove => removed.extend(backend.remove_node()),
            NodeChange::Add => nodes.push(backend.add_node()),
            NodeChange::Resize => nodes.extend(backend.resize_node()),
            NodeChange::Device => nodes.extend(backend.fail_device()),
            NodeChange::Relabel => nodes.extend(backend.relabel_node()),
            NodeChange::Break => backend.break_node(),
        }
        if nodes.is_empty() && removed.is_empty() {
            return Ok(());
        }
        let gone = removed.first().cloned();
        self.tell_agent(index, Input::NodesChanged { nodes, removed })?;
        let Some(gone) = gone else { return Ok(()) };
        let on_it = self.agents[index].backend.live().filter(|(_, object)| object.is_on(&gone));
        let attempts: Vec<AttemptId> = on_it.map(|(attempt, _)| *attempt).collect();
        for attempt in attempts {
            self.end_object(index, attempt, OutcomeKind::NodeLost, None)?;
        }
        Ok(())
    }
}
