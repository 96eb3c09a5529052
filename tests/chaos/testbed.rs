//! One world: a broker on a small disk, agents of host pools in several regions, and links between
//! all of them that can be cut. Faults are put on it, and taken from it.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::clients::Access;
use crate::commands::STEADY_POOL;
use crate::keeper::Keeper;
use crate::schedule::{Fault, Lane, POOLS};
use crate::support::disk::{FaultyDisk, Tmpfs};
use crate::support::proxy::Proxy;
use crate::support::{Home, processes_with, supervisor_of, until, weir_in};
use crate::work::HISTORY;

/// How long anything may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at whether what should run does.
const TEND_EVERY: Duration = Duration::from_millis(100);
/// Where the broker listens: below the ports that the system gives to whoever asks for any, one of
/// whom could otherwise take it while the broker is down.
const PORTS: std::ops::Range<u16> = 15_000..32_000;
const REGIONS: [&str; POOLS] = ["CN-CQ", "CN-GZ", "CN-XJ"];

/// A world. Dropped, nothing of it is left.
pub struct World {
    /// Before its folder: what is mounted there goes first.
    disk: Option<(Tmpfs, FaultyDisk)>,
    pub home: Home,
    pub broker: Arc<Keeper>,
    pub agents: Vec<Arc<Keeper>>,
    links: Vec<Proxy>,
    clients: Proxy,
    token: String,
    tended: Arc<AtomicBool>,
    tender: Option<std::thread::JoinHandle<()>>,
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let first = PORTS.start + (rand::random::<u16>() % (PORTS.end - PORTS.start));
    (first..PORTS.end).chain(PORTS).find(free).expect("a free port")
}

impl World {
    /// Starts everything; `test` names what is skipped, loudly, where a disk can't be made to fail.
    pub fn start(test: &str, runtime: &tokio::runtime::Runtime) -> Self {
        let mut home = Home::new();
        std::fs::create_dir(home.data()).expect("a folder");
        let disk = Tmpfs::mount(test, &home.data(), "32m")
            .and_then(|small| Some((small, FaultyDisk::prepare(test, home.path())?)));
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        home.address = address.to_string();
        let log = |name: &str| home.path().join(format!("{name}.log"));
        let env: Vec<(&str, PathBuf)> = disk.iter().flat_map(|(_, faulty)| faulty.env()).collect();
        let (folder, data) = (home.path().to_owned(), home.data());
        let broker = Keeper::new("broker", log("broker"), {
            let (folder, address) = (folder.clone(), home.address.clone());
            move || {
                let mut command = weir_in(&folder);
                let arguments = ["server", "--listen", &address, "--data"];
                command.args(arguments).arg(&data).envs(env.iter().cloned());
                command
            }
        });
        let proxy = || runtime.block_on(Proxy::start(address));
        let links: Vec<Proxy> = (0..POOLS).map(|_| proxy()).collect();
        let agents = (0..POOLS).map(|pool| {
            let name = format!("pool-{pool}");
            let file = agent_file(&home, pool, links[pool].address);
            let folder = folder.clone();
            Arc::new(Keeper::new(&name, log(&name), move || {
                let mut command = weir_in(&folder);
                command.arg("agent").arg(&file);
                command
            }))
        });
        let agents: Vec<_> = agents.collect();
        let (broker, clients) = (Arc::new(broker), proxy());
        let tended = Arc::new(AtomicBool::new(true));
        let (token, tender) = (String::new(), None);
        let mut world = Self { disk, home, broker, agents, links, clients, token, tended, tender };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let token = self.home.data().join("token");
        // The agents read it when they start.
        until("the broker has made its token", PATIENCE, || {
            self.broker.tend();
            token.exists()
        });
        self.token = std::fs::read_to_string(token).expect("the token");
        let (tended, agents, broker) = (self.tended.clone(), self.agents.clone(), self.broker.clone());
        self.tender = Some(std::thread::spawn(move || {
            while tended.load(Ordering::Relaxed) {
                broker.tend();
                agents.iter().for_each(|agent| agent.tend());
                std::thread::park_timeout(TEND_EVERY);
            }
        }));
    }

    /// How clients get to the broker: by their own link.
    pub fn access(&self) -> Access {
        Access { address: self.clients.address.to_string(), token: self.token.clone() }
    }

    /// Where tasks write what they do: on a disk that is well.
    pub fn history(&self) -> PathBuf {
        self.home.path().join("history")
    }

    /// Tasks, and what they started, that live.
    pub fn tasks(&self) -> Vec<Pid> {
        processes_with(&format!("{HISTORY}={}", self.history().display()))
    }

    /// Puts a fault on a lane.
    pub fn strike(&self, lane: Lane, fault: Fault) {
        match fault {
            Fault::Kill => self.keeper(lane).kill(),
            Fault::Down => self.keeper(lane).hold_down(true),
            Fault::Terminate => self.keeper(lane).terminate(),
            Fault::Pause => self.keeper(lane).pause(),
            Fault::KillSupervisor => {
                kill(supervisor_of(&self.state_folder(lane)));
            }
            Fault::KillMachine => self.kill_machine(lane),
            Fault::Link { weather, .. } => self.link(lane).set(weather),
            Fault::DiskFull => self.fill_disk(),
            Fault::DiskMountedReadOnly => self.mount_read_only(),
            Fault::JournalBecomesReadOnly => self.faulty(|_, faulty| faulty.make_read_only(true)),
            Fault::SyncsFail => self.faulty(|_, faulty| faulty.fail_syncs(true)),
        }
    }

    /// Takes it away again.
    pub fn heal(&self, lane: Lane, fault: Fault) {
        match fault {
            Fault::Kill | Fault::Terminate | Fault::KillSupervisor | Fault::KillMachine => {}
            Fault::Down => self.keeper(lane).hold_down(false),
            Fault::Pause => self.keeper(lane).resume(),
            Fault::Link { torn_after, .. } => self.link(lane).heal(torn_after),
            Fault::DiskFull => {
                let _ = std::fs::remove_file(self.ballast());
            }
            Fault::DiskMountedReadOnly => self.faulty(|small, _| small.remount("rw").expect("a disk")),
            Fault::JournalBecomesReadOnly => self.faulty(|_, faulty| faulty.make_read_only(false)),
            Fault::SyncsFail => self.faulty(|_, faulty| faulty.fail_syncs(false)),
        }
    }

    fn keeper(&self, lane: Lane) -> &Keeper {
        match lane {
            Lane::Broker => &self.broker,
            Lane::Agent(pool) => &self.agents[pool],
            Lane::Link(_) | Lane::Clients | Lane::Disk => panic!("{lane:?} is no process"),
        }
    }

    fn link(&self, lane: Lane) -> &Proxy {
        match lane {
            Lane::Link(pool) => &self.links[pool],
            Lane::Clients => &self.clients,
            Lane::Broker | Lane::Agent(_) | Lane::Disk => panic!("{lane:?} is no link"),
        }
    }

    fn faulty(&self, act: impl FnOnce(&Tmpfs, &FaultyDisk)) {
        // Where disks can't be made to fail, that was said when the world began.
        if let Some((small, faulty)) = &self.disk {
            act(small, faulty);
        }
    }

    fn ballast(&self) -> PathBuf {
        self.home.data().join("ballast")
    }

    fn state_folder(&self, lane: Lane) -> PathBuf {
        let Lane::Agent(pool) = lane else { panic!("{lane:?} has no state folder") };
        state_folder(&self.home, pool)
    }

    fn kill_machine(&self, lane: Lane) {
        let Lane::Agent(pool) = lane else { panic!("{lane:?} is no machine") };
        self.agents[pool].hold_down(true);
        // A supervisor that is there may start tasks: it goes first.
        kill(supervisor_of(&self.state_folder(lane)));
        let here = processes_with(&format!("WEIR_POOL=pool-{pool}"));
        kill(self.tasks().into_iter().filter(|pid| here.contains(pid)));
        self.agents[pool].hold_down(false);
    }

    /// Writes until there is no room for a page.
    fn fill_disk(&self) {
        if self.disk.is_none() {
            return;
        }
        let mut ballast = File::create(self.ballast()).expect("a file");
        for bytes in [1 << 20, 4_096] {
            let piece = vec![0; bytes];
            while ballast.write_all(&piece).is_ok() {}
        }
    }

    /// Kills the broker, so that no file is open for writing, before it is started again.
    fn mount_read_only(&self) {
        self.faulty(|small, _| {
            until("the disk is read-only", PATIENCE, || {
                self.broker.kill();
                small.remount("ro").is_ok()
            });
        });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.tended.store(false, Ordering::Relaxed);
        if let Some(tender) = self.tender.take() {
            let _ = tender.join();
        }
        self.agents.iter().for_each(|agent| agent.hold_down(true));
        self.broker.hold_down(true);
        let supervisors = (0..POOLS).filter_map(|pool| supervisor_of(&state_folder(&self.home, pool)));
        kill(supervisors.chain(self.tasks()));
        if std::thread::panicking() {
            // What is on the small disk goes with it.
            let _ = std::process::Command::new("cp")
                .arg("-r")
                .arg(self.home.data())
                .arg(self.home.path().join("data-left"))
                .status();
            self.home.folder.disable_cleanup(true);
        }
    }
}

fn kill(pids: impl IntoIterator<Item = Pid>) {
    for pid in pids {
        // One that has ended already needs no signal.
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn state_folder(home: &Home, pool: usize) -> PathBuf {
    home.path().join(format!("pool-{pool}"))
}

fn agent_file(home: &Home, pool: usize, broker: SocketAddr) -> PathBuf {
    let (token, state) = (home.data().join("token"), state_folder(home, pool));
    let region = REGIONS[pool];
    // Small pools fill up, so that work is spread over all; the steady one must not be a bottleneck.
    let cpus = if pool == STEADY_POOL { 12 } else { 4 };
    let text = format!(
        "name = \"pool-{pool}\"\nregion = \"{region}\"\nserver = \"http://{broker}\"\ntoken_file = {token:?}\n\
         state = {state:?}\n[host]\ncpus = {cpus}\nmemory_mib = 65536\n"
    );
    let file = home.path().join(format!("pool-{pool}.toml"));
    std::fs::write(&file, text).expect("the agent's file");
    file
}
