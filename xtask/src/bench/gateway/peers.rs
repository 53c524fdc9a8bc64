//! nginx and HAProxy as reverse proxies of one sandbox.

use std::net::SocketAddr;

use anyhow::Result;
use filter_tests::Netns;

use super::lane::GATEWAY;
use crate::bench::names::capsule::Capsule;

/// Starts nginx.
pub fn nginx(host: &Netns, name: &str, to: SocketAddr) -> Result<Capsule> {
    let config = format!(
        "daemon off;
user root;
pid /run/nginx.pid;
error_log stderr crit;
worker_processes 2;
events {{
    worker_connections 4096;
    multi_accept on;
}}
http {{
    access_log off;
    client_body_temp_path /run/body;
    proxy_temp_path /run/proxy;
    fastcgi_temp_path /run/fastcgi;
    uwsgi_temp_path /run/uwsgi;
    scgi_temp_path /run/scgi;
    map_hash_bucket_size 128;
    map $http_host $sandbox {{
        {name} sandbox;
    }}
    map $http_upgrade $wanted {{
        default upgrade;
        '' '';
    }}
    upstream sandbox {{ server {to}; keepalive 512; keepalive_requests 1000000000; }}
    keepalive_requests 1000000000;
    keepalive_timeout 75s;
    server {{
        listen 127.0.0.1:{GATEWAY} reuseport backlog=4096;
        location / {{
            if ($sandbox = \"\") {{ return 502; }}
            proxy_pass http://$sandbox;
            proxy_http_version 1.1;
            proxy_max_temp_file_size 0;
            proxy_buffers 16 64k;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $wanted;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
"
    );
    let program = ["/usr/sbin/nginx", "-q", "-e", "stderr", "-c", "/run/nginx.conf"];
    let nginx = Capsule::start(host, &[("nginx.conf", &config)], &program)?;
    nginx.wait_for(host, GATEWAY)?;
    Ok(nginx)
}

/// Starts HAProxy.
pub fn haproxy(host: &Netns, name: &str, to: SocketAddr) -> Result<Capsule> {
    let config = format!(
        "global
    nbthread 2
    maxconn 4096
    tune.pipesize 262144
defaults
    mode http
    timeout connect 5s
    timeout client 10m
    timeout server 10m
    timeout tunnel 10m
    timeout http-keep-alive 75s
    maxconn 4096
    backlog 4096
    option splice-auto
frontend public
    bind 127.0.0.1:{GATEWAY}
    option forwardfor
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header X-Forwarded-Proto http
    http-request deny deny_status 502 unless {{ req.hdr(host),lower -m str {name} }}
    default_backend sandbox
backend sandbox
    http-reuse always
    server sandbox {to}
"
    );
    let program = ["/usr/sbin/haproxy", "-q", "-db", "-f", "/run/haproxy.cfg"];
    let haproxy = Capsule::start(host, &[("haproxy.cfg", &config)], &program)?;
    haproxy.wait_for(host, GATEWAY)?;
    Ok(haproxy)
}
