//! nginx as a filter of names: `stream` with `ssl_preread`, and a proxy for HTTP.

use anyhow::{Context as _, Result};
use filter_tests::Netns;
use nix::sys::signal::Signal;
use std::process::Command;

use super::book::{self, Book};
use super::capsule::Capsule;
use super::peer::{HTTP, Peer, TLS};
use crate::tool;

/// Idle connections that each worker keeps to each server: as many as any row has.
const KEPT: usize = 128;

/// A running nginx.
#[derive(Debug)]
pub struct Nginx(Capsule);

impl Nginx {
    /// Starts it in the network of `host`.
    pub fn start(host: &Netns, book: &Book, descriptors: u64) -> Result<Self> {
        let files =
            [("nginx.conf", &*config(descriptors)), ("tls.map", &*tls(book)), ("http.map", &*http(book))];
        let program = ["/usr/sbin/nginx", "-q", "-e", "stderr", "-c", "/run/nginx.conf"];
        let nginx = Self(Capsule::start(host, &files, &program)?);
        nginx.0.wait_for(host, TLS)?;
        nginx.0.wait_for(host, HTTP)?;
        Ok(nginx)
    }
}

impl Peer for Nginx {
    fn prepare(&self, book: &Book) -> Result<()> {
        self.0.put("tls.map", &tls(book))?;
        self.0.put("http.map", &http(book))
    }

    /// What `nginx -s reload` does after it has started and read the configuration for itself.
    fn replace(&self, _: &Book) -> Result<()> {
        self.0.signal(Signal::SIGHUP)
    }

    fn processes(&self) -> Result<Vec<u32>> {
        self.0.processes()
    }
}

/// The number, after "nginx version: nginx/".
pub fn version() -> Result<String> {
    let output = Command::new("/usr/sbin/nginx").arg("-v").output().context("cannot run nginx")?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let number = text.trim().rsplit('/').next().unwrap_or_default().to_owned();
    Ok(format!("nginx {number}"))
}

/// Whether all of it is there; installs what is missing.
pub fn ensure() -> Result<()> {
    tool::ensure(
        &[("nginx", "nginx"), ("../lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream")],
        "the comparison with nginx",
    )
}

fn tls(book: &Book) -> String {
    book.entries().map(|(name, server)| format!("{name} {}:443;\n", book::server(server))).collect()
}

fn http(book: &Book) -> String {
    book.entries().map(|(name, server)| format!("{name} server{server};\n")).collect()
}

fn config(descriptors: u64) -> String {
    let upstreams: String = (0..book::SERVERS)
        .map(|number| {
            let address = book::server(number);
            format!(
                "    upstream server{number} {{ server {address}:80; keepalive {KEPT}; keepalive_requests 1000000000; }}\n"
            )
        })
        .collect();
    format!(
        "daemon off;
user root;
pid /run/nginx.pid;
error_log stderr crit;
worker_processes 2;
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
events {{
    worker_connections {descriptors};
    multi_accept on;
}}
stream {{
    map_hash_max_size 65536;
    map_hash_bucket_size 128;
    map $ssl_preread_server_name $server {{
        include /run/tls.map;
    }}
    preread_timeout 5s;
    server {{
        listen {TLS} reuseport backlog=4096;
        ssl_preread on;
        proxy_pass $server;
        proxy_buffer_size 64k;
    }}
}}
http {{
    access_log off;
    client_body_temp_path /run/body;
    proxy_temp_path /run/proxy;
    fastcgi_temp_path /run/fastcgi;
    uwsgi_temp_path /run/uwsgi;
    scgi_temp_path /run/scgi;
    map_hash_max_size 65536;
    map_hash_bucket_size 128;
    map $host $server {{
        include /run/http.map;
    }}
{upstreams}
    keepalive_requests 1000000000;
    keepalive_timeout 75s;
    server {{
        listen {HTTP} reuseport backlog=4096;
        location / {{
            if ($server = \"\") {{ return 403; }}
            proxy_pass http://$server;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_set_header Host $http_host;
        }}
    }}
}}
"
    )
}
