//! What real clients need to trust the filter: a sandbox's `/etc/ssl`, or one of the variables.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test panics to fail")]

mod names_support;
mod transforms_support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};
use filter_tests::python;
use serde_json::json;

use names_support::GOOD;
use transforms_support::{KEY, Stage, allowing, rule};

const URL: &str = "https://allowed.test/";
const VARIABLES: [&str; 4] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"];

const NODE: &str = "fetch(process.argv[1]).then(r => r.text()).then(console.log)";
const GO: &str = r#"package main

import (
	"fmt"
	"net/http"
	"os"
)

func main() {
	response, err := http.Get(os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(response.Status)
}
"#;
const JAVA: &str = r#"import java.net.URI;
import java.net.http.*;

public class Client {
    public static void main(String[] args) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(args[0])).build();
        System.out.println(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}
"#;

/// A client, and what makes it trust the filter.
struct Client {
    name: &'static str,
    command: Vec<String>,
    /// `/etc/ssl` of the sandbox is enough.
    by_system: bool,
    /// Each of these is, without it.
    by_variable: &'static [&'static str],
}

fn clients(directory: &Path) -> Result<Vec<Client>> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let home = python("transforms", &["requests==2.32.5", "pip==25.3"])?;
    let python = home.join("bin/python").display().to_string();
    let go = build(directory, "client.go", GO, &["go", "build", "-o", "client", "client.go"])?;
    let java = build(directory, "Client.java", JAVA, &["javac", "Client.java"])?;
    let java = java.parent().context("no directory")?.display().to_string();
    let get = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read())";
    let requests = "import sys, requests; print(requests.get(sys.argv[1]).text)";
    let pip = [
        "-m",
        "pip",
        "download",
        "--isolated",
        "--retries",
        "0",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--index-url",
        URL,
        "nothing",
    ];
    let client = |name, command, by_system, by_variable| Client { name, command, by_system, by_variable };
    Ok(vec![
        client("curl", words(&["curl", "-sS", URL]), true, &["SSL_CERT_FILE"]),
        client("Python ssl", words(&[&python, "-c", get, URL]), true, &["SSL_CERT_FILE"]),
        client("Python requests", words(&[&python, "-c", requests, URL]), false, &["REQUESTS_CA_BUNDLE"]),
        client(
            "pip",
            words(&[&[python.as_str()][..], &pip].concat()),
            true,
            &["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"],
        ),
        client("Node", words(&["node", "-e", NODE, URL]), false, &["NODE_EXTRA_CA_CERTS"]),
        client("Go", words(&[&go.display().to_string(), URL]), true, &["SSL_CERT_FILE"]),
        client("git", words(&["git", "ls-remote", URL]), true, &["GIT_SSL_CAINFO"]),
        client("Java", words(&["java", "-cp", &java, "Client", URL]), false, &[]),
    ])
}

/// Writes a source down and has it compiled.
fn build(directory: &Path, name: &str, source: &str, command: &[&str]) -> Result<PathBuf> {
    fs::write(directory.join(name), source)?;
    let [program, arguments @ ..] = command else { bail!("no program") };
    let built = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .env("GOCACHE", directory.join("go"))
        .status();
    ensure!(
        built.with_context(|| format!("this test needs `{program}`"))?.success(),
        "{name} does not compile"
    );
    Ok(directory.join("client"))
}

#[test]
fn real_clients_trust_the_filter_by_the_sandboxes_files_or_variables() -> Result<()> {
    let policy = allowing(&["allowed.test"], &[("allowed.test", rule(json!({"X-Api-Key": KEY})))]);
    let stage = Stage::with(&policy)?;
    let directory = stage.secrets().parent().context("no directory")?.to_owned();
    fs::write(directory.join("hosts"), format!("127.0.0.1 localhost\n{} allowed.test\n", GOOD[0]))?;
    let trust = stage.daemon.socket().parent().context("no directory")?.join("trust");
    let mut wrong = Vec::new();
    for client in clients(&directory)? {
        let trusts = |system: bool, variables: &[&str]| -> Result<bool> {
            let before = stage.secure.requests().len();
            let output =
                command(&stage, &client, &directory, system.then_some(&trust), variables)?.output()?;
            let seen = stage.secure.requests().split_off(before);
            let said = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            ensure!(!said.contains(KEY), "{} learnt the secret: {said}", client.name);
            ensure!(
                seen.iter().all(|request| request.values("x-api-key") == [KEY]),
                "{}: {seen:?}",
                client.name
            );
            Ok(!seen.is_empty())
        };
        let mut expect = |what: String, expected: bool, found: bool| {
            if expected != found {
                wrong.push(format!("{} with {what}: {found}", client.name));
            }
        };
        expect("nothing".to_owned(), false, trusts(false, &[])?);
        expect("/etc/ssl".to_owned(), client.by_system, trusts(true, &[])?);
        for variable in VARIABLES {
            let expected = client.by_variable.contains(&variable);
            expect(variable.to_owned(), expected, trusts(false, &[variable])?);
        }
        expect("all of it".to_owned(), client.name != "Java", trusts(true, &VARIABLES)?);
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[test]
fn java_trusts_what_keytool_adds_to_its_store() -> Result<()> {
    let policy = allowing(&["allowed.test"], &[("allowed.test", rule(json!({"X-Api-Key": KEY})))]);
    let stage = Stage::with(&policy)?;
    let directory = stage.secrets().parent().context("no directory")?.to_owned();
    fs::write(directory.join("hosts"), format!("127.0.0.1 localhost\n{} allowed.test\n", GOOD[0]))?;
    fs::write(directory.join("ca.pem"), stage.authority()?)?;
    let store = directory.join("store");
    let added = Command::new("keytool")
        .args(["-importcert", "-noprompt", "-alias", "sandbox-filter", "-storepass", "changeit", "-keystore"])
        .arg(&store)
        .arg("-file")
        .arg(directory.join("ca.pem"))
        .stderr(Stdio::null())
        .status()
        .context("this test needs `keytool`")?;
    ensure!(added.success(), "keytool");
    let mut java = clients(&directory)?.pop().context("no Java")?;
    let options = [
        format!("-Djavax.net.ssl.trustStore={}", store.display()),
        "-Djavax.net.ssl.trustStorePassword=changeit".to_owned(),
    ];
    java.command.splice(1..1, options);
    let output = command(&stage, &java, &directory, None, &[])?.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(stage.secure.last().unwrap().values("x-api-key") == [KEY]);
    Ok(())
}

/// The client in the sandbox, which knows where its host is; with `/etc/ssl` of such a sandbox or without.
fn command(
    stage: &Stage,
    client: &Client,
    directory: &Path,
    trust: Option<&PathBuf>,
    variables: &[&str],
) -> Result<Command> {
    let mut command = stage.sandbox.command("unshare")?;
    let hosts = directory.join("hosts");
    let mut script = format!("mount --bind {} /etc/hosts", hosts.display());
    if let Some(trust) = trust {
        script += &format!(" && mount --bind {} /etc/ssl", trust.join("ssl").display());
    }
    command.args(["--mount", "timeout", "30", "sh", "-c", &format!("{script} && exec \"$@\""), "sh"]);
    command.args(&client.command).current_dir(directory).stdin(Stdio::null());
    // What a machine has its own programs trust is not to be found here.
    command.env_clear().envs(env::var_os("PATH").map(|path| ("PATH", path)));
    let ssl = stage.daemon.socket().parent().context("no directory")?.join("trust/ssl");
    for variable in variables {
        let file = if *variable == "NODE_EXTRA_CA_CERTS" {
            "sandbox-filter-ca.pem"
        } else {
            "certs/ca-certificates.crt"
        };
        command.env(variable, ssl.join(file));
    }
    command.env("HOME", directory).env("GIT_TERMINAL_PROMPT", "0");
    Ok(command)
}
