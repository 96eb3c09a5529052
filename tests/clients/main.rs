//! Clients that know the API only from `proto/` and from what the broker describes: generic ones on the command line, and
//! programs in other languages with stubs of their own. Each submits, watches, explains and cancels jobs of a real broker,
//! and reads their output. `tests/clients/prepare` installs what they need.

#[path = "../support/mod.rs"]
mod support;

mod command_line;
mod documented;
mod programs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use command_line::CommandLine;
use programs::{finish, part, program, root};
use support::{Home, Process, until};

/// Starts `weir dev` and waits until this machine's pool is ready.
fn dev() -> (Home, Process) {
    let mut home = Home::new();
    let dev = home.start_broker("dev");
    until("this machine's pool is ready", Duration::from_secs(60), || {
        home.run(&["get", "pools"]).1.lines().any(|line| line.starts_with("local") && line.contains("READY"))
    });
    (home, dev)
}

fn token(home: &Home) -> String {
    std::fs::read_to_string(home.data().join("token")).expect("the token").trim().to_owned()
}

/// Runs a client in the test's folder. It finds the broker through its environment, and fails by its exit code.
fn run_client(home: &Home, mut command: Command) {
    command.env("WEIR_SERVER", &home.address).env("WEIR_TOKEN", token(home)).current_dir(home.path());
    finish(home, command);
}

/// The jobs that the client's work has left, by name: a client that did nothing is noticed.
fn check_jobs(home: &Home, suffixes: &[&str]) {
    let (code, printed, errors) = home.run(&["get", "jobs", "--all"]);
    assert_eq!(code, 0, "{errors}");
    let phases = printed.lines().skip(1).map(|line| {
        let mut columns = line.split_whitespace();
        let name = columns.next().unwrap_or_default().to_owned();
        (name, columns.nth(1).unwrap_or_default().to_owned())
    });
    let ends = [("hello", "SUCCEEDED"), ("waits", "CANCELLED"), ("sleeps", "CANCELLED")];
    let expected = suffixes
        .iter()
        .flat_map(|suffix| ends.map(|(name, phase)| (format!("{name}{suffix}"), phase.to_owned())));
    assert_eq!(phases.collect::<BTreeMap<_, _>>(), expected.collect(), "{printed}");
}

/// Generates stubs of `weir.v1` in the test's folder, as the template in a folder beside this file describes.
fn generate(home: &Home, buf: &Path, template: &str, plugins: &Path) {
    let proto = root().join("proto");
    let mut command = Command::new(buf);
    command.arg("generate").arg(&proto).arg("--path").arg(proto.join("weir/v1"));
    command.arg("--template").arg(root().join("tests/clients").join(template));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(plugins.to_owned()).chain(std::env::split_paths(&path));
    command.env("PATH", std::env::join_paths(folders).expect("a PATH"));
    command.current_dir(home.path());
    finish(home, command);
}

/// Copies files of a folder beside this file to the test's folder.
fn copy(home: &Home, folder: &str, files: &[&str]) {
    for file in files {
        let source = root().join("tests/clients").join(folder).join(file);
        std::fs::copy(&source, home.path().join(file)).unwrap_or_else(|error| panic!("{source:?}: {error}"));
    }
}

#[test]
fn curl_needs_no_stubs() {
    let Some(_curl) = program("curl_needs_no_stubs", &["curl"]) else { return };
    let (home, _dev) = dev();
    let mut script = Command::new("bash");
    script.arg(root().join("tests/clients/curl.sh"));
    run_client(&home, script);
    check_jobs(&home, &[""]);
}

#[test]
fn buf_curl_works_with_each_protocol() {
    let Some(web) = part("buf_curl_works_with_each_protocol", "web") else { return };
    let (home, _dev) = dev();
    let authorization = format!("authorization: Bearer {}", token(&home));
    let schema = root().join("proto").display().to_string();
    // Reflection is a stream in both directions, which needs HTTP/2, and which Connect's form of this API does not have.
    let reflection = ["--reflect-header", &authorization];
    let schema = ["--schema", &schema];
    let cases = [
        ("-grpc", "grpc", &reflection, None),
        ("-web", "grpcweb", &reflection, None),
        ("-web1", "grpcweb", &schema, None),
        ("-connect", "connect", &schema, Some("--http2-prior-knowledge")),
        ("-connect1", "connect", &schema, None),
    ];
    for (suffix, protocol, types, more) in cases {
        let call = |method: &str, request: &str| {
            let mut command = Command::new(web.join("bin/buf"));
            command.args(["curl", "--protocol", protocol, "--header", &authorization, "--data", request]);
            command.args(types).args(more).arg(format!("http://{}/weir.v1.{method}", home.address));
            command
        };
        CommandLine { call: &call, not_found: "\"code\": \"not_found\"" }.check(suffix);
    }
    check_jobs(&home, &cases.map(|case| case.0));
}

#[test]
fn grpcurl_needs_only_reflection() {
    let Some(go) = part("grpcurl_needs_only_reflection", "go") else { return };
    let (home, _dev) = dev();
    let authorization = format!("authorization: Bearer {}", token(&home));
    let call = |method: &str, request: &str| {
        let mut command = Command::new(go.join("bin/grpcurl"));
        command.args(["-plaintext", "-H", &authorization, "-d", request, &home.address]);
        command.arg(format!("weir.v1.{method}"));
        command
    };
    // It can print an error's details because reflection has their types, too.
    CommandLine { call: &call, not_found: "\"reason\": \"NotFound\"" }.check("");
    check_jobs(&home, &[""]);
}

#[test]
fn a_client_in_go_works_with_stubs_of_its_own() {
    const TEST: &str = "a_client_in_go_works_with_stubs_of_its_own";
    let (Some(web), Some(go)) = (part(TEST, "web"), part(TEST, "go")) else { return };
    let Some(compiler) = program(TEST, &["go"]) else { return };
    let (home, _dev) = dev();
    copy(&home, "go", &["go.mod", "go.sum", "main.go"]);
    generate(&home, &web.join("bin/buf"), "go/buf.gen.yaml", &go.join("bin"));
    let mut build = Command::new(compiler);
    // The flags of `tests/clients/prepare`, which has compiled what this needs.
    build.env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly -trimpath -buildvcs=false");
    build.args(["build", "-o", "client", "."]).current_dir(home.path());
    finish(&home, build);
    run_client(&home, Command::new(home.path().join("client")));
    check_jobs(&home, &[""]);
}

#[test]
fn a_client_in_python_works_with_stubs_of_its_own() {
    let Some(python) = part("a_client_in_python_works_with_stubs_of_its_own", "python") else { return };
    let python = python.join("bin/python");
    let (home, _dev) = dev();
    let mut stubs = Command::new(&python);
    stubs.args(["-m", "grpc_tools.protoc", "--python_out=.", "--grpc_python_out=."]);
    stubs.arg("-I").arg(root().join("proto"));
    let files = std::fs::read_dir(root().join("proto/weir/v1")).expect("definitions").flatten();
    stubs.args(files.map(|file| PathBuf::from("weir/v1").join(file.file_name())));
    stubs.current_dir(home.path());
    finish(&home, stubs);
    let mut client = Command::new(&python);
    // The folder in the tree must stay as it is.
    client.env("PYTHONPATH", home.path()).env("PYTHONDONTWRITEBYTECODE", "1");
    client.arg(root().join("tests/clients/python/client.py"));
    run_client(&home, client);
    check_jobs(&home, &[""]);
}

#[test]
fn a_page_in_a_browser_works_with_connect_and_grpc_web() {
    const TEST: &str = "a_page_in_a_browser_works_with_connect_and_grpc_web";
    let Some(web) = part(TEST, "web") else { return };
    let (Some(node), Some(browser)) =
        (program(TEST, &["node"]), program(TEST, &["chromium", "google-chrome"]))
    else {
        return;
    };
    let (home, _dev) = dev();
    copy(&home, "web", &["package.json", "tsconfig.json", "page.ts", "run.mjs"]);
    let modules = home.path().join("node_modules");
    std::os::unix::fs::symlink(web.join("node_modules"), &modules).expect("a link");
    generate(&home, &web.join("bin/buf"), "web/buf.gen.yaml", &modules.join(".bin"));
    let mut types = Command::new(&node);
    types.arg(modules.join("typescript/bin/tsc")).current_dir(home.path());
    finish(&home, types);
    let mut script = Command::new(&node);
    // The browser's files of this run go into the test's folder, too.
    script.env("CHROMIUM", browser).env("TMPDIR", home.path());
    script.env("XDG_CONFIG_HOME", home.path()).env("XDG_CACHE_HOME", home.path()).arg("run.mjs");
    run_client(&home, script);
    // None is of the page from a foreign origin.
    check_jobs(&home, &["-connect", "-connect-binary", "-grpc-web"]);
}
