//! Package managers, against small repositories of the allowed name's site.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use filter_tests::{Output, program};

use crate::fetch::virtual_environment;
use crate::place::{Place, complaint, said, success};

const REPOSITORIES: &str = include_str!("repositories.py");
const PAGE: &str = "https://allowed.test";

/// A place whose site has the repositories.
fn shop() -> Result<Place> {
    let place = Place::new()?;
    let root = place.userland.home().join("published");
    let mut write = Command::new(program("python3")?);
    write.args(["-c", REPOSITORIES]).arg(&root).arg(PAGE);
    success(Output::of(&mut write)?, "writing repositories")?;
    place.site.publish_files(&root)?;
    Ok(place)
}

/// Runs a command for the allowed name, then for another, of which it complains.
fn installs(
    place: &Place,
    what: &str,
    command: impl Fn(&str) -> Result<Command>,
    complains: &str,
) -> Result<String> {
    let before = place.before()?;
    let said_of_allowed = success(Output::of(&mut command(PAGE)?)?, what)?;
    place.ensure_asked(&before)?;
    // Node gives an attempt 250 ms and then begins another; one that it gave up has said nothing.
    let denied: Vec<_> =
        place.denied(&before)?.into_iter().filter(|(reason, _)| reason != "no_name").collect();
    ensure!(denied.is_empty(), "{denied:?} were denied");
    let before = place.before()?;
    let output = Output::of(&mut command("https://denied.test")?)?;
    ensure!(output.code != 0, "{what} succeeded: {}", said(&output));
    ensure!(complaint(&output).contains(complains), "{what} complains: {}", said(&output));
    place.ensure_denied(&before, "name_not_allowed")?;
    Ok(said_of_allowed)
}

#[test]
fn pip() -> Result<()> {
    let place = shop()?;
    let python = virtual_environment()?.join("bin/python");
    let target = place.userland.home().join("pip");
    let install = |page: &str| {
        let mut command = place.command(&python, &["-m", "pip", "install", "--disable-pip-version-check"])?;
        command.args([
            "--no-cache-dir",
            "--retries=0",
            "--index-url",
            &format!("{page}/simple/"),
            "--target",
        ]);
        command.arg(&target).arg("sandboxtest");
        Ok(command)
    };
    installs(&place, "pip", install, "unrecognized name")?;
    for module in ["sandboxtest", "sandboxtestone", "sandboxtesttwo"] {
        ensure!(target.join(module).with_extension("py").exists(), "{module} is missing");
    }
    Ok(())
}

#[test]
fn uv() -> Result<()> {
    let place = shop()?;
    let environment = virtual_environment()?;
    let target = place.userland.home().join("uv");
    let install = |page: &str| {
        let mut command =
            place.command(environment.join("bin/uv"), &["pip", "install", "--no-cache", "--reinstall"])?;
        command.arg("--python").arg(environment.join("bin/python")).env("UV_HTTP_RETRIES", "0");
        command.args(["--index-url", &format!("{page}/simple/"), "--target"]).arg(&target).arg("sandboxtest");
        Ok(command)
    };
    installs(&place, "uv", install, "unrecognisedname")?;
    for module in ["sandboxtest", "sandboxtestone", "sandboxtesttwo"] {
        ensure!(target.join(module).with_extension("py").exists(), "{module} is missing");
    }
    Ok(())
}

#[test]
fn npm_with_hundreds_of_sockets() -> Result<()> {
    let place = shop()?;
    let install = |page: &str| {
        let mut command =
            place.command("npm", &["install", "--no-audit", "--no-fund", "--no-update-notifier"])?;
        command.args(["--maxsockets=300", "--fetch-retries=0", "--registry", &format!("{page}/npm/")]);
        command.args(["--prefix", "project", "sandbox-test"]);
        Ok(command)
    };
    fs::create_dir_all(place.userland.home().join("project"))?;
    let told = installs(&place, "npm", install, "unrecognized name")?;
    ensure!(told.contains("added 301 packages"), "{told}");
    let sockets = place.site.accepted().len();
    ensure!(sockets > 100, "npm opened only {sockets} connections");
    Ok(())
}

#[test]
fn apt() -> Result<()> {
    let place = shop()?;
    let root = place.userland.home().join("apt");
    for directory in ["etc", "lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::write(root.join("status"), "")?;
    // Read before anything of this machine's own, which is left alone (apt.conf(5)).
    let at = root.display();
    let config = format!(
        "Dir {{ Etc \"{at}/etc\"; Etc::Parts \"/dev/null\"; Cache \"{at}/cache\"; State \"{at}\"; \
         State::status \"{at}/status\"; State::lists \"{at}/lists\"; }};\n\
         APT::Sandbox::User \"root\";\nAcquire::Retries \"0\";\n"
    );
    fs::write(root.join("apt.conf"), config)?;
    let apt = |page: &str| {
        fs::write(root.join("etc/sources.list"), format!("deb [trusted=yes] {page} apt/\n"))?;
        let script = "apt-get --error-on=any update && apt-get -y -d install sandbox-test-0";
        let mut command = place.command("sh", &["-ec", script])?;
        command.env("APT_CONFIG", root.join("apt.conf"));
        Ok(command)
    };
    let archives = || {
        fs::read_dir(root.join("cache/archives")).context("no archives").map(|files| {
            files
                .flatten()
                .filter(|file| file.path().extension().is_some_and(|extension| extension == "deb"))
                .count()
        })
    };
    installs(&place, "apt", apt, "could not handshake")?;
    ensure!(archives()? == 12, "{} packages", archives()?);

    // A mirror without TLS, of which apt asks for several files at once.
    fs::remove_dir_all(root.join("cache/archives"))?;
    fs::create_dir_all(root.join("cache/archives/partial"))?;
    let before = place.before()?;
    success(Output::of(&mut apt("http://allowed.test")?)?, "apt without TLS")?;
    ensure!(archives()? == 12, "{} packages", archives()?);
    place.ensure_allowed(&before)?;
    let before = place.before()?;
    let output = Output::of(&mut apt("http://denied.test")?)?;
    ensure!(output.code != 0 && said(&output).contains("403"), "{}", said(&output));
    place.ensure_denied(&before, "name_not_allowed")
}
