//! What a host pool does not enforce or promise, in words for operators and job owners.

use std::time::Duration;

use rustix::process::geteuid;

use super::protocol::User;

/// The limits of CPU, memory and processes that are not enforced here, and why. Memory is watched at an interval
/// instead.
pub(super) fn unenforced(limits: [Option<&String>; 3], interval: Duration) -> Vec<String> {
    let [cpu, memory, processes] = limits;
    let cpu = cpu.map(|why| format!("CPU limits are not enforced: {why}"));
    let memory = memory.map(|why| {
        format!(
            "memory is watched every {} ms, not enforced by the kernel, and a task above its request is \
             killed: {why}",
            interval.as_millis()
        )
    });
    let processes = processes.map(|why| format!("the number of a task's processes is not limited: {why}"));
    cpu.into_iter().chain(memory).chain(processes).collect()
}

/// What is not promised without control groups.
pub(super) const UNCONTAINED: &str = "no control group holds the processes of a task: one that leaves its session and clears its \
                           environment may live until all attempts of its time have ended";

/// What is not promised because tasks run beside the agent, as its user.
pub(super) fn not_separated(why: &str) -> String {
    let user = geteuid();
    let power = if user.is_root() { ", and do whatever root may" } else { "" };
    format!(
        "tasks are not separated: {why}. All run as the agent's user ({}): they can read and stop each other, and read \
         the pool's key{power}",
        user.as_raw()
    )
}

/// What tasks share although each has namespaces of its own.
pub(super) fn shared(user: Option<&User>) -> String {
    match user {
        None if geteuid().is_root() => {
            let note = "tasks run as root, and may do whatever root may: they can also read the pool's key";
            note.to_owned()
        }
        None => format!(
            "all tasks run as the agent's user ({}): they share its files outside of the agent's own, /tmp, \
             /dev/shm and the network",
            geteuid().as_raw()
        ),
        Some(user) => format!(
            "all tasks run as user {}: they share that user's files, /tmp, /dev/shm and the network",
            user.name
        ),
    }
}
