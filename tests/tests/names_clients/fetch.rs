//! Clients that fetch a page: each of an allowed name and of another one.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Output, Visit, cache, compiled, program, python};

use crate::names_support::{CIDR, EVIL, GOOD, ID, at, counted};
use crate::place::{Place, complaint, said, success};

/// Packages of PyPI, at versions that are known to work here.
pub const PYTHON: [&str; 6] = [
    "requests==2.34.2",
    "aiohttp==3.14.5",
    "curl-cffi==0.17.0",
    "websockets==17.4",
    "grpcio==1.85.1",
    "uv==0.13.8",
];
pub const CLIENT_PY: &str = include_str!("client.py");
const CLIENT_MJS: &str = include_str!("client.mjs");
const CLIENT_GO: &str = include_str!("client.go");
const CLIENT_JAVA: &str = include_str!("Client.java");

/// The virtual environment of the Python clients.
pub fn virtual_environment() -> Result<PathBuf> {
    python("clients", &PYTHON)
}

/// Fetches a page of the allowed name, twice over TLS and so by one connection or two, and one of another name, of
/// which it `complains` in these words.
fn fetches(
    place: &Place,
    what: &str,
    command: impl Fn(&str) -> Result<Command>,
    complains: &str,
) -> Result<Vec<Visit>> {
    let path = format!("/{}", what.replace(' ', "-"));
    let before = place.before()?;
    let page = success(Output::of(&mut command(&format!("https://allowed.test{path}"))?)?, what)?;
    ensure!(
        GOOD.iter().any(|address| page.contains(&format!("hello from {} as allowed.test", at(address, 443)))),
        "{what} got {page}"
    );
    let visits = place.ensure_allowed(&before).with_context(|| what.to_owned())?;
    ensure!(visits.iter().any(|visit| visit.path == path), "{what}: {visits:?}");

    let before = place.before()?;
    let output = Output::of(&mut command(&format!("https://denied.test{path}"))?)?;
    ensure!(output.code != 0, "{what} got {} of another name", said(&output));
    ensure!(complaint(&output).contains(complains), "{what} complains: {}", said(&output));
    place.ensure_denied(&before, "name_not_allowed").with_context(|| what.to_owned())?;
    Ok(visits)
}

/// Fetches a page of each name without TLS: the filter's own answer says why there is none.
fn fetches_plain(place: &Place, what: &str, command: impl Fn(&str) -> Result<Command>) -> Result<()> {
    let before = place.before()?;
    let page = success(Output::of(&mut command("http://allowed.test/plain")?)?, what)?;
    ensure!(page.contains("as allowed.test"), "{what} got {page}");
    place.ensure_allowed(&before).with_context(|| what.to_owned())?;

    let before = place.before()?;
    let output = Output::of(&mut command("http://denied.test/plain")?)?;
    let told = said(&output);
    ensure!(told.contains("403"), "{what}: {told}");
    place.ensure_denied(&before, "name_not_allowed").with_context(|| what.to_owned())
}

#[test]
fn curl() -> Result<()> {
    let place = Place::new()?;
    let curl = |args: &'static [&'static str]| {
        let place = &place;
        move |url: &str| place.command("curl", &[&["-sS"], args, &[url]].concat())
    };
    let visits = fetches(&place, "curl", curl(&[]), "unrecognized name")?;
    ensure!(visits.iter().all(|visit| visit.version == "HTTP/2.0"), "ALPN did not get through: {visits:?}");
    let visits = fetches(&place, "curl 1.1", curl(&["--http1.1"]), "unrecognized name")?;
    ensure!(visits.iter().all(|visit| visit.version == "HTTP/1.1"), "{visits:?}");
    fetches(&place, "curl TLS 1.2", curl(&["--tls-max", "1.2"]), "unrecognized name")?;

    fetches_plain(&place, "curl", curl(&["-i"]))?;
    let told = place.run("curl", &["-sS", "http://denied.test/"])?.stdout;
    let told: serde_json::Value = serde_json::from_str(&told).with_context(|| told.clone())?;
    ensure!(told["reason"] == "name_not_allowed" && told["host"] == "denied.test", "{told}");

    // What the sandbox believes of a name does not lead it elsewhere, and what is allowed by address stays so.
    place.userland.believe("allowed.test", EVIL[0])?;
    let page = success(place.run("curl", &["-sS", "https://allowed.test/hosts"])?, "/etc/hosts")?;
    ensure!(page.contains(&format!("hello from {}", at(GOOD[0], 443))), "{page}");
    place.ensure_not_at(&EVIL)?;
    let url = format!("http://{}/", CIDR[0]);
    ensure!(success(place.run("curl", &["-sS", &url])?, "an address")?.contains(CIDR[0]));
    ensure!(counted(&place.daemon.show(ID)?, "allowed_cidr") > 0);
    Ok(())
}

#[test]
fn curl_with_a_post_quantum_hello() -> Result<()> {
    let place = Place::new()?;
    let python = virtual_environment()?.join("bin/python");
    let visits = fetches(
        &place,
        "curl as Chrome",
        |url| place.command(&python, &["-c", CLIENT_PY, "post-quantum", url]),
        "unrecognized name",
    )?;
    ensure!(visits.iter().all(|visit| visit.ends.post_quantum), "{visits:?}");
    Ok(())
}

#[test]
fn wget() -> Result<()> {
    let place = Place::new()?;
    let wget = |url: &str| place.command("wget", &["-nv", "--tries=1", "-O", "-", url]);
    fetches(&place, "wget", wget, "server name sent was not recognized")?;
    fetches_plain(&place, "wget", wget)
}

#[test]
fn python_clients() -> Result<()> {
    let place = Place::new()?;
    let python = virtual_environment()?.join("bin/python");
    for client in ["urllib", "requests", "aiohttp"] {
        let fetch = |url: &str| place.command(&python, &["-c", CLIENT_PY, client, url]);
        fetches(&place, client, fetch, "unrecognized name")?;
    }
    for client in ["urllib", "requests"] {
        fetches_plain(&place, client, |url| place.command(&python, &["-c", CLIENT_PY, client, url]))?;
    }
    Ok(())
}

#[test]
fn node_clients() -> Result<()> {
    let place = Place::new()?;
    for client in ["fetch", "https"] {
        let fetch = |url: &str| {
            place.command("node", &["--input-type=module", "-e", CLIENT_MJS, "client.mjs", client, url])
        };
        fetches(&place, client, fetch, "unrecognized name")?;
    }
    Ok(())
}

#[test]
fn go_client() -> Result<()> {
    let place = Place::new()?;
    let mut build = Command::new(program("go")?);
    build.env("GOCACHE", cache()?.join("go-cache")).env("GO111MODULE", "off").args(["build", "-o", "client"]);
    let go = compiled("client.go", CLIENT_GO, &mut build)?.join("client");
    let visits = fetches(&place, "Go", |url| place.command(&go, &[url]), "tls: unrecognized name")?;
    ensure!(visits.iter().all(|visit| visit.version == "HTTP/2.0"), "{visits:?}");
    Ok(())
}

#[test]
fn java_clients() -> Result<()> {
    let place = Place::new()?;
    let classes = compiled("Client.java", CLIENT_JAVA, &mut Command::new(program("javac")?))?;
    let classes = classes.to_str().context("a path")?;
    for client in ["http-client", "https-url-connection"] {
        let fetch = |url: &str| place.command("java", &["-cp", classes, "Client", client, url]);
        fetches(&place, client, fetch, "unrecognized name")?;
    }
    Ok(())
}

#[test]
fn chromium() -> Result<()> {
    let place = Place::new()?;
    let profile = format!("--user-data-dir={}", place.userland.home().join("chromium").display());
    let flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        // Its authorities are its own; whose certificate comes is for the others to check.
        "--ignore-certificate-errors",
        "--dump-dom",
        &profile,
    ];
    let fetch = |url: &str| place.command("chromium-headless-shell", &[&flags[..], &[url]].concat());
    let visits = fetches(&place, "Chromium", fetch, "err ssl unrecognized name alert")?;
    ensure!(visits.iter().all(|visit| visit.ends.post_quantum), "no post-quantum hello: {visits:?}");
    Ok(())
}
