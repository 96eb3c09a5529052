//! What a host pool needs of its machine: the rows of `weir agent check`.

use super::Settings;
use super::cgroup::Groups;
use super::isolation::{self, Resolved};
use crate::pools::check::Finding;

/// Checks what the pool's agent needs of this machine, without changing anything.
pub fn check(settings: &Settings) -> Vec<Finding> {
    let state = settings.state.join("supervisor");
    let socket = settings.state.join("supervisor").join("supervisor.sock");
    // A socket can't be bound to a longer path: unix(7), sun_path.
    let length = socket.as_os_str().len();
    let fits = if length < 108 {
        Ok(format!("{} can be bound", socket.display()))
    } else {
        Err(format!(
            "{} has {length} bytes, and a socket's path may have 107: use a shorter state folder",
            socket.display()
        ))
    };
    let mut found = vec![Finding::of("socket", fits)];
    let name = match super::stored_node_name(&settings.state.join("supervisor")) {
        Ok(name) => name.unwrap_or_else(super::host_name),
        Err(error) => {
            found.push(Finding::of("node", Err(error.to_string())));
            super::host_name()
        }
    };
    let node = super::node(settings, name);
    let devices =
        if node.devices.is_empty() { String::new() } else { format!(", {} devices", node.devices.len()) };
    let (cpus, mib) = (node.allocatable.cpu_millis / 1_000, node.allocatable.memory_bytes >> 20);
    found.push(Finding::of("node", Ok(format!("{}: {cpus} CPUs, {mib} MiB{devices}", node.name))));
    let enforced = |controller| Groups::would_enforce(settings.cgroup_parent.as_deref(), &state, controller);
    for (what, controller, otherwise) in [
        ("cpu limits", "cpu", "not enforced"),
        ("memory limits", "memory", "watched, not enforced by the kernel"),
        ("process limits", "pids", "not enforced"),
    ] {
        found.push(match enforced(controller) {
            Ok(()) => Finding::of(what, Ok("the kernel enforces them".to_owned())),
            Err(why) => Finding::limited(what, format!("{otherwise}: {why}")),
        });
    }
    found.push(match isolation::resolve(settings) {
        Ok(Resolved { isolation: Some(_), notes }) => {
            let shared = notes.join("; ");
            Finding::of(
                "isolation",
                Ok(format!("tasks see neither each other's processes nor the agent's files; {shared}")),
            )
        }
        Ok(Resolved { isolation: None, notes }) => Finding::limited("isolation", notes.join("; ")),
        Err(error) => Finding::of("isolation", Err(error.to_string())),
    });
    found
}
