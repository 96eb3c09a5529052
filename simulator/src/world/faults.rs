//! Injects the faults of the schedule, and repairs all of them at the end of the fault phase.

use weir::agent::Input;
use weir::model::attempt::OutcomeKind;
use weir::model::id::AttemptId;

use super::World;
use super::event::Event;
use super::network::LinkConditions;
use super::schedule::{Fault, NodeChange};

/// Delay until the crash of a process that is down is retried.
const RETRY_MS: u64 = 700;

impl World {
    /// Injects a fault of the schedule.
    pub(crate) fn inject(&mut self, number: usize) -> Result<(), String> {
        let fault = self.schedule.faults[number].fault.clone();
        if self.is_down(&fault) && self.in_fault_phase() {
            // The process will restart.
            self.after(RETRY_MS, Event::Fault(number));
            return Ok(());
        }
        let writer = self.writer();
        match fault {
            Fault::CrashBroker { after_effects, pending, down_ms } => {
                if let Some(host) = writer {
                    self.plan_crash(host, after_effects, pending, down_ms);
                }
            }
            Fault::PauseBroker { ms } => {
                if let Some(host) = writer {
                    self.brokers[host].paused = true;
                    self.after(ms, Event::ResumeBroker { host });
                }
            }
            Fault::Takeover => self.take_over()?,
            Fault::FailAppend { pending } => {
                if let Some(host) = writer {
                    self.fail_next_append(host, pending);
                }
            }
            Fault::SlowDisk { ms, append_ms } => self.slow_disk = (self.now + ms, append_ms),
            Fault::StaleCopy { missing_permille, ms } => self.start_on_stale_copy(missing_permille, ms)?,
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
            Fault::Reset { agent } => self.reset_link(agent),
            Fault::Partition { agent, cut, ms } => self.network.cut(agent, cut, self.now + ms),
            Fault::LinkConditions {
                agent,
                ms,
                loss_permille,
                repeat_permille,
                reorder_permille,
                delay_ms,
            } => {
                let permille = [loss_permille, repeat_permille, reorder_permille];
                self.network.set_conditions(agent, LinkConditions::new(self.now + ms, permille, delay_ms));
            }
            Fault::ClientLinkConditions { ms, loss_permille, delay_ms } => {
                let permille = [loss_permille, 0, 0];
                self.client.set_conditions(LinkConditions::new(self.now + ms, permille, delay_ms));
            }
            Fault::Nodes { agent, change } => self.change_nodes(agent, change)?,
            Fault::CopyState { agent } => self.agents[agent].copy = Some(self.agents[agent].hello.clone()),
            Fault::StartCopy { agent } => self.start_copy(agent),
            Fault::FalseReport { agent, report } => self.send_false_report(agent, report)?,
        }
        Ok(())
    }

    /// The process that the fault would crash is down.
    fn is_down(&self, fault: &Fault) -> bool {
        match fault {
            Fault::CrashBroker { .. } => self.writer().is_none(),
            Fault::CrashAgent { agent, .. } => self.agents[*agent].machine.is_none(),
            _ => false,
        }
    }

    /// Starts a second broker on a free host, unless there is no writer or brokers run on a stale copy.
    fn take_over(&mut self) -> Result<(), String> {
        let free = (0..self.brokers.len()).find(|host| self.brokers[*host].machine.is_none());
        match free.filter(|_| self.stale_copy.is_none() && self.writer().is_some()) {
            Some(host) => self.start_broker_on(host),
            None => Ok(()),
        }
    }

    /// Ends the fault phase: repairs the network, the disk and the nodes, resumes paused processes, and
    /// restores the newest journal.
    pub(crate) fn heal(&mut self) -> Result<(), String> {
        self.network.heal();
        self.client.set_conditions(LinkConditions::default());
        self.slow_disk = (0, 0);
        for agent in 0..self.agents.len() {
            let nodes = self.agents[agent].backend.repair();
            self.resume_agent(agent)?;
            self.notify_agent(agent, Input::NodesChanged { nodes, removed: Vec::new() })?;
        }
        for host in 0..self.brokers.len() {
            self.resume_broker(host)?;
        }
        if self.stale_copy.is_some() {
            self.restore_journal()?;
        }
        Ok(())
    }

    /// Changes the nodes of a pool and reports the change to its agent. Attempts on a removed node end.
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
        self.notify_agent(index, Input::NodesChanged { nodes, removed })?;
        let Some(gone) = gone else { return Ok(()) };
        let on_it = self.agents[index].backend.live().filter(|(_, object)| object.is_on(&gone));
        let attempts: Vec<AttemptId> = on_it.map(|(attempt, _)| *attempt).collect();
        for attempt in attempts {
            self.end_object(index, attempt, OutcomeKind::NodeLost, None)?;
        }
        Ok(())
    }
}
