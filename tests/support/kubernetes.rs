//! A real Kubernetes control plane on loopback. kwok simulates the kubelets, as
//! `tests/real/kubernetes/stages.yaml` describes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::{Process, until};

/// Deadline of every wait.
const TIMEOUT: Duration = Duration::from_secs(120);
const PROGRAMS: [&str; 5] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"];
/// A token with all rights.
const ADMIN: &str = "admin-token";

/// A control plane. Dropping it ends its programs.
pub struct ControlPlane {
    folder: tempfile::TempDir,
    programs: Programs,
    api_port: u16,
    etcd_port: u16,
    api: Mutex<Option<Process>>,
    /// The API server writes an audit log of the pods that are created and bound, `audit.log`.
    audits_pods: bool,
    _others: Vec<Process>,
}

/// An answer of etcd's, streamed through `kubectl`.
struct Answer {
    output: std::io::BufReader<std::process::ChildStdout>,
    _process: Process,
}

impl std::io::Read for Answer {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.output.read(buffer)
    }
}

/// The folders with the programs, in order of preference: `KUBEBUILDER_ASSETS`, the output of
/// `tests/real/kubernetes/build`, `PATH`.
struct Programs(Vec<PathBuf>);

impl Programs {
    fn find() -> Option<Self> {
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
        let built = std::env::var_os("WEIR_KUBERNETES").map(PathBuf::from);
        let built = built.or_else(|| Some(cache?.join("weir/kubernetes")));
        let own = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = own.into_iter().chain(built).chain(std::env::split_paths(&path)).collect();
        let programs = Self(folders);
        PROGRAMS.iter().chain(&["kubectl"]).all(|name| programs.path(name).is_some()).then_some(programs)
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.iter().map(|folder| folder.join(name)).find(|path| path.is_file())
    }
}

fn free_ports<const N: usize>() -> [u16; N] {
    // All are bound at the same time, so that they differ.
    let listeners = [(); N].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}

/// Bytes, which JSON represents in base64.
fn bytes(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}

fn openssl(arguments: &[&str]) {
    let done = Command::new("openssl").args(arguments).stderr(Stdio::null()).stdout(Stdio::null()).status();
    assert!(done.expect("openssl").success(), "openssl {arguments:?}");
}

impl ControlPlane {
    /// The control plane that the tests of this binary share. It ends when the last of them drops it. `None`, and a
    /// line on standard error, if its programs are missing.
    ///
    /// # Panics
    /// If the programs are missing and `WEIR_REQUIRE_REAL` is set.
    pub fn shared(test: &str) -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<ControlPlane>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = shared.upgrade() {
            return Some(running);
        }
        let started = Arc::new(Self::start(test)?);
        *shared = Arc::downgrade(&started);
        Some(started)
    }

    /// A control plane for one test alone. Otherwise as [`Self::shared`].
    pub fn start(test: &str) -> Option<Self> {
        Self::start_with(test, &["kube-controller-manager", "kube-scheduler", "kwok"])
    }

    /// Starts etcd, an API server, and the named parts. The part `audit` is the API server's audit log of created and
    /// bound pods.
    pub fn start_with(test: &str, parts: &[&str]) -> Option<Self> {
        let Some(programs) = Programs::find() else {
            let why = "there is no Kubernetes control plane: tests/real/kubernetes/build builds one";
            assert!(std::env::var_os("WEIR_REQUIRE_REAL").is_none(), "{test}: {why}");
            let line = format!("SKIPPED: {test}: {why}\n");
            std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).expect("standard error");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("weirk").tempdir_in("/tmp").expect("a temp folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let [api_port, etcd_port, peer_port, kwok_port] = free_ports();
        openssl(&["genrsa", "-out", &at("sa.key"), "2048"]);
        openssl(&["rsa", "-in", &at("sa.key"), "-pubout", "-out", &at("sa.pub")]);
        std::fs::write(at("tokens.csv"), format!("{ADMIN},admin,admin,system:masters\n")).expect("tokens");
        let start = |name: &str, arguments: &[String]| {
            let log = std::fs::File::create(folder.path().join(format!("{name}.log"))).expect("a log");
            let error = log.try_clone().expect("a second handle");
            let mut command = Command::new(programs.path(name).expect("found above"));
            command.args(arguments).stdin(Stdio::null()).stdout(log).stderr(error);
            Process(command.spawn().expect("a program of the control plane"))
        };
        let text = |arguments: &[&str]| arguments.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        let (client, peer) =
            (format!("http://127.0.0.1:{etcd_port}"), format!("http://127.0.0.1:{peer_port}"));
        let etcd = start(
            "etcd",
            &text(&[
                "--name=e",
                &format!("--data-dir={}", at("etcd")),
                "--unsafe-no-fsync",
                &format!("--listen-client-urls={client}"),
                &format!("--advertise-client-urls={client}"),
                &format!("--listen-peer-urls={peer}"),
                &format!("--initial-advertise-peer-urls={peer}"),
                &format!("--initial-cluster=e={peer}"),
            ]),
        );
        let config = format!(
            r#"{{"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{{"name": "c", "context": {{"cluster": "c", "user": "u"}}}}],
            "clusters": [{{"name": "c", "cluster": {{"server": "https://127.0.0.1:{api_port}", "certificate-authority": "{}"}}}}],
            "users": [{{"name": "u", "user": {{"token": "{ADMIN}"}}}}]}}"#,
            at("certs/apiserver.crt")
        );
        std::fs::write(at("kubeconfig"), config).expect("a kubeconfig");
        let audits_pods = parts.contains(&"audit");
        let (api, _others) = (Mutex::new(None), vec![etcd]);
        let mut plane = Self { folder, programs, api_port, etcd_port, api, audits_pods, _others };
        plane.start_api();
        let kubeconfig = plane.kubeconfig().display().to_string();
        let stages = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real/kubernetes/stages.yaml");
        let config = format!("--kubeconfig={kubeconfig}");
        let logs = plane.path("logs.yaml");
        let text = format!(
            "apiVersion: kwok.x-k8s.io/v1alpha1\nkind: ClusterLogs\nmetadata: {{name: logs}}\n\
             spec: {{logs: [{{containers: [task], logsFile: {:?}, follow: true}}]}}\n",
            plane.task_log()
        );
        std::fs::write(&logs, text).expect("a configuration");
        std::fs::write(plane.task_log(), "").expect("a log");
        let key = plane.path("sa.key").display().to_string();
        let more = [
            (
                "kube-controller-manager",
                vec![
                    config.clone(),
                    format!("--service-account-private-key-file={key}"),
                    "--use-service-account-credentials=false".to_owned(),
                    "--leader-elect=false".to_owned(),
                    "--bind-address=127.0.0.1".to_owned(),
                    "--secure-port=0".to_owned(),
                ],
            ),
            (
                "kube-scheduler",
                vec![
                    config.clone(),
                    "--leader-elect=false".to_owned(),
                    "--bind-address=127.0.0.1".to_owned(),
                    "--secure-port=0".to_owned(),
                ],
            ),
            (
                "kwok",
                vec![
                    config,
                    "--manage-all-nodes=true".to_owned(),
                    format!("--server-address=127.0.0.1:{kwok_port}"),
                    format!("--node-port={kwok_port}"),
                    format!("--tls-cert-file={}", plane.path("certs/apiserver.crt").display()),
                    format!("--tls-private-key-file={}", plane.path("certs/apiserver.key").display()),
                    format!("--config={}", logs.display()),
                    format!("--config={}", stages.display()),
                ],
            ),
        ];
        for (name, arguments) in more.into_iter().filter(|(name, _)| parts.contains(name)) {
            let log = std::fs::File::create(plane.path(&format!("{name}.log"))).expect("a log");
            let error = log.try_clone().expect("a second handle");
            let mut command = Command::new(plane.programs.path(name).expect("found above"));
            command.args(arguments).stdin(Stdio::null()).stdout(log).stderr(error);
            plane._others.push(Process(command.spawn().expect("a program of the control plane")));
        }
        Some(plane)
    }

    /// Path of a file in the control plane's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The log that kwok returns for every task on every node, in the container runtimes' format: lines of
    /// `TIME stdout F TEXT`.
    pub fn task_log(&self) -> PathBuf {
        self.path("task.log")
    }

    /// A kubeconfig with all rights.
    pub fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    /// Writes a kubeconfig with another token to a file of this name.
    pub fn kubeconfig_with(&self, name: &str, token: &str) -> PathBuf {
        let text = std::fs::read_to_string(self.kubeconfig()).expect("a kubeconfig").replace(ADMIN, token);
        std::fs::write(self.path(name), text).expect("a kubeconfig");
        self.path(name)
    }

    /// Writes a kubeconfig with all rights and another address of the API server.
    pub fn kubeconfig_at(&self, name: &str, address: SocketAddr) -> PathBuf {
        let text = std::fs::read_to_string(self.kubeconfig()).expect("a kubeconfig");
        let text = text.replace(&self.api_address().to_string(), &address.to_string());
        std::fs::write(self.path(name), text).expect("a kubeconfig");
        self.path(name)
    }

    /// Creates a service account with all rights, and a kubeconfig that reads its token from a file. Replaces the
    /// token if the account was deleted before.
    pub fn account(&self, namespace: &str, name: &str) -> PathBuf {
        self.apply(&format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: {namespace}}}\n---\n\
             apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {{name: {name}}}\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}}\n\
             subjects: [{{kind: ServiceAccount, name: {name}, namespace: {namespace}}}]\n"
        ));
        let token = self.kubectl(&["-n", namespace, "create", "token", name]);
        let (file, new) = (self.path(&format!("{name}.token")), self.path(&format!("{name}.token.new")));
        std::fs::write(&new, token.trim()).expect("a token");
        std::fs::rename(&new, &file).expect("a token");
        let text = std::fs::read_to_string(self.kubeconfig()).expect("a kubeconfig");
        let text = text.replace(&format!(r#""token": "{ADMIN}""#), &format!(r#""tokenFile": {file:?}"#));
        let kubeconfig = self.path(&format!("{name}.kubeconfig"));
        std::fs::write(&kubeconfig, text).expect("a kubeconfig");
        kubeconfig
    }

    /// The API server's address.
    pub fn api_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.api_port))
    }

    /// Starts the API server: at first, and after `stop_api`.
    pub fn start_api(&self) {
        let at = |name: &str| self.path(name).display().to_string();
        let mut options = std::fs::OpenOptions::new();
        let log = options.create(true).append(true).open(self.path("kube-apiserver.log")).expect("a log");
        let error = log.try_clone().expect("a second handle");
        let mut command = Command::new(self.programs.path("kube-apiserver").expect("found at the start"));
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port))
            .args([
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                "--endpoint-reconciler-type=none",
            ])
            .arg(format!("--secure-port={}", self.api_port))
            .arg(format!("--cert-dir={}", at("certs")))
            .arg(format!("--service-account-key-file={}", at("sa.pub")))
            .arg(format!("--service-account-signing-key-file={}", at("sa.key")))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC"])
            .arg(format!("--token-auth-file={}", at("tokens.csv")))
            // `created_pods` reads etcd's whole history. Only `compact` removes it.
            .arg("--etcd-compaction-interval=0")
            .args(if self.audits_pods { self.audit_flags() } else { Vec::new() })
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(error);
        let process = Process(command.spawn().expect("an API server"));
        *self.api.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        until("the API server is ready", TIMEOUT, || self.try_kubectl(&["get", "--raw", "/readyz"]).is_ok());
    }

    fn audit_flags(&self) -> Vec<String> {
        let policy = self.path("audit.yaml");
        let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
                    - {level: Metadata, verbs: [create], resources: [{group: '', resources: [pods, pods/binding]}]}\n\
                    - {level: None}\n";
        std::fs::write(&policy, text).expect("a policy");
        let log = self.path("audit.log");
        vec![
            format!("--audit-policy-file={}", policy.display()),
            format!("--audit-log-path={}", log.display()),
        ]
    }

    /// Kills the API server.
    pub fn stop_api(&self) {
        *self.api.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Runs kubectl with all rights, and returns what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    }

    /// The same.
    ///
    /// # Errors
    /// kubectl's standard error, if it fails.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.kubectl_as(&self.kubeconfig(), arguments, "")
    }

    /// Runs kubectl with a kubeconfig and standard input.
    ///
    /// # Errors
    /// kubectl's standard error, if it fails.
    pub fn kubectl_as(&self, kubeconfig: &Path, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(self.programs.path("kubectl").expect("found at the start"));
        command.arg("--kubeconfig").arg(kubeconfig).args(arguments).env("HOME", self.folder.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl");
        // If kubectl does not read all of its input, its own error is reported below.
        let _ = std::io::Write::write_all(&mut child.stdin.take().expect("its input"), input.as_bytes());
        let output = child.wait_with_output().expect("kubectl ends");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Names of the pods that were created in a namespace, each as often as it was created. Read from etcd's history,
    /// so it includes pods whose creator was killed before it got the answer.
    pub fn created_pods(&self, namespace: &str) -> Vec<String> {
        let pods = format!("/registry/pods/{namespace}/");
        // A key directly after those of the pods, written now: its event follows all of theirs.
        let (end, after_end) = ("/registry/pods0", "/registry/pods1");
        let last = self.put(end);
        let range = json!({ "key": bytes(&pods), "range_end": bytes(after_end), "start_revision": "1" });
        let mut created = Vec::new();
        for answer in
            serde_json::Deserializer::from_reader(self.etcd("watch", &json!({ "create_request": range })))
                .into_iter::<Value>()
        {
            let answer = answer.expect("etcd's history");
            for event in answer["result"]["events"].as_array().into_iter().flatten() {
                let pair = &event["kv"];
                if pair["mod_revision"] == last {
                    return created;
                }
                // A creation has equal revisions; a deletion has no create revision.
                let key: ByteString = serde_json::from_value(pair["key"].clone()).expect("a key");
                let key = String::from_utf8(key.0).expect("a key");
                if let Some(name) = key.strip_prefix(&pods)
                    && pair["create_revision"] == pair["mod_revision"]
                {
                    created.push(name.to_owned());
                }
            }
        }
        panic!("etcd's history ends before {last}");
    }

    /// Compacts etcd's history.
    pub fn compact(&self) {
        let revision = self.put("/compacted");
        let done = self.etcd("kv/compaction", &json!({ "revision": revision, "physical": true }));
        let done: Value = serde_json::from_reader(done).expect("an answer");
        assert!(done["header"]["revision"].is_string(), "{done}");
    }

    /// Writes a key outside of Kubernetes' own, and returns its revision.
    fn put(&self, key: &str) -> Value {
        let put = self.etcd("kv/put", &json!({ "key": bytes(key), "value": bytes("") }));
        let mut put: Value = serde_json::from_reader(put).expect("an answer");
        put["header"]["revision"].take()
    }

    /// Calls etcd through its JSON gateway, and returns the answer as a stream.
    fn etcd(&self, call: &str, request: &Value) -> Answer {
        let mut command = Command::new(self.programs.path("kubectl").expect("found at the start"));
        command.arg(format!("--server=http://127.0.0.1:{}", self.etcd_port));
        command.args(["create", "--raw", &format!("/v3/{call}"), "-f", "-"]).env("HOME", self.folder.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process(command.spawn().expect("kubectl"));
        let mut input = process.0.stdin.take().expect("its input");
        std::io::Write::write_all(&mut input, request.to_string().as_bytes()).expect("written");
        let output = std::io::BufReader::new(process.0.stdout.take().expect("its output"));
        Answer { output, _process: process }
    }

    /// Applies objects, as `kubectl apply` does.
    pub fn apply(&self, objects: &str) {
        let done = self.kubectl_as(&self.kubeconfig(), &["apply", "-f", "-"], objects);
        done.unwrap_or_else(|error| panic!("{objects}: {error}"));
    }

    /// Creates nodes `PREFIX-0` and so on with the label `pool=PREFIX`, and the namespace `PREFIX`. Waits until they
    /// accept pods.
    pub fn make_pool(&self, prefix: &str, nodes: usize, resources: &str) {
        let mut objects = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {prefix}}}\n");
        for index in 0..nodes {
            objects += &format!(
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {prefix}-{index}, labels: {{pool: {prefix}}}}}\n\
                 status: {{capacity: {{{resources}, pods: 110}}, allocatable: {{{resources}, pods: 110}}}}\n"
            );
        }
        self.apply(&objects);
        let selector = format!("pool={prefix}");
        let ready = r#"jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{" "}{end}"#;
        until("the nodes are ready", TIMEOUT, || {
            let found = self.try_kubectl(&["get", "nodes", "-l", &selector, "-o", ready]);
            found.is_ok_and(|text| text.split_whitespace().filter(|word| *word == "True").count() == nodes)
        });
        // A controller removes the taint `not-ready` some time after the node has become ready.
        until("the nodes accept pods", TIMEOUT, || {
            let taints = "jsonpath={.items[*].spec.taints[*].key}";
            let found = self.try_kubectl(&["get", "nodes", "-l", &selector, "-o", taints]);
            found.is_ok_and(|text| text.trim().is_empty())
        });
        // A controller creates it in every namespace. Without it pods are refused.
        until("the namespace has its service account", TIMEOUT, || {
            self.try_kubectl(&["-n", prefix, "get", "serviceaccount", "default"]).is_ok()
        });
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // The programs' logs, for the analysis of a failed test.
        if std::thread::panicking() {
            for name in PROGRAMS {
                let log = std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                eprintln!("{name}: {}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
    }
}
