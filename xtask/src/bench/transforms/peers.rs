//! nginx and HAProxy as they would be set up for one host: TLS ends there, a header is set, and TLS begins again
//! towards a server whose certificate is verified.

use anyhow::Result;
use filter_tests::{Ca, Netns, Process};

use super::lane::{ADDRESS, HEADER, HOST};
use crate::bench::names::capsule::Capsule;
use crate::bench::names::peer::TLS;

/// A running proxy, which ends when it is dropped.
pub enum Peer {
    /// With a `/run` of its own.
    Capsule { _capsule: Capsule },
    /// As it is.
    Process { _process: Process },
}

/// Connections to the server that are kept.
const KEPT: usize = 64;

/// nginx, whose certificates are of `own` and who trusts `upstream`.
pub fn nginx(host: &Netns, own: &Ca, upstream: &Ca) -> Result<Peer> {
    let [a, b, c, d] = ADDRESS;
    let (name, value) = HEADER;
    let config = format!(
        "daemon off;
user root;
pid /run/nginx.pid;
error_log stderr crit;
worker_processes 2;
events {{
    worker_connections 8192;
    multi_accept on;
}}
http {{
    access_log off;
    client_body_temp_path /run/body;
    proxy_temp_path /run/proxy;
    fastcgi_temp_path /run/fastcgi;
    uwsgi_temp_path /run/uwsgi;
    scgi_temp_path /run/scgi;
    keepalive_requests 1000000000;
    upstream server {{
        server {a}.{b}.{c}.{d}:443;
        keepalive {KEPT};
        keepalive_requests 1000000000;
    }}
    server {{
        listen {TLS} ssl reuseport backlog=4096;
        server_name {HOST};
        ssl_certificate /run/pair.pem;
        ssl_certificate_key /run/pair.pem;
        location / {{
            proxy_pass https://server;
            proxy_http_version 1.1;
            proxy_ssl_server_name on;
            proxy_ssl_name {HOST};
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate /run/upstream.pem;
            proxy_ssl_protocols TLSv1.2 TLSv1.3;
            proxy_set_header Connection \"\";
            proxy_set_header Host $http_host;
            proxy_set_header {name} \"{value}\";
            proxy_max_temp_file_size 0;
        }}
    }}
}}
"
    );
    start(
        host,
        ("nginx.conf", &config),
        own,
        upstream,
        &["/usr/sbin/nginx", "-q", "-e", "stderr", "-c", "/run/nginx.conf"],
    )
}

/// HAProxy, likewise.
pub fn haproxy(host: &Netns, own: &Ca, upstream: &Ca) -> Result<Peer> {
    let [a, b, c, d] = ADDRESS;
    let (name, value) = HEADER;
    let config = format!(
        "global
    nbthread 2
    maxconn 8192
    tune.ssl.default-dh-param 2048
defaults
    mode http
    timeout connect 10s
    timeout client 10m
    timeout server 10m
    timeout http-keep-alive 75s
    backlog 4096
frontend tls
    bind :{TLS} ssl crt /run/pair.pem
    http-request set-header {name} \"{value}\"
    default_backend server
backend server
    http-reuse always
    server any {a}.{b}.{c}.{d}:443 ssl sni str({HOST}) verify required ca-file /run/upstream.pem verifyhost {HOST}
"
    );
    start(
        host,
        ("haproxy.cfg", &config),
        own,
        upstream,
        &["/usr/sbin/haproxy", "-q", "-db", "-f", "/run/haproxy.cfg"],
    )
}

fn start(host: &Netns, config: (&str, &str), own: &Ca, upstream: &Ca, program: &[&str]) -> Result<Peer> {
    let (certificate, key) = own.issue(HOST)?;
    let (pair, trusted) = (certificate + &key, upstream.pem());
    let files = [config, ("pair.pem", &*pair), ("upstream.pem", &*trusted)];
    let capsule = Capsule::start(host, &files, program)?;
    capsule.wait_for(host, TLS)?;
    Ok(Peer::Capsule { _capsule: capsule })
}
