//! The kernel programs.
//!
//! [`from_sandbox`] runs at TC ingress of a sandbox's interface, that is on what the sandbox *sends*;
//! [`to_sandbox`] at TC egress, on what is sent to it. Both give a verdict as an [`Outcome`], and this
//! file is the table that turns outcomes into actions. `sweep` judges known connections again after an
//! update; `inject` puts a frame onto an interface. Those two run only when userspace calls them.
//!
//! What a packet means and what is to become of it is decided in `filter-common`; here are the maps, each
//! owned by one module, and the helpers.
#![no_std]
#![no_main]
#![feature(core_intrinsics, asm_experimental_arch)]
#![expect(internal_features, reason = "the only way to atomics on this target")]

mod atomic;
mod budget;
mod closed;
mod control;
mod counters;
mod events;
mod expiry;
mod flows;
mod inject;
mod policy;
mod refuse;
mod sandboxes;
mod skb;
mod sweep;
mod throttle;
mod verdict;

use aya_ebpf::{bindings::TC_ACT_SHOT, bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use filter_common::Reason;
use filter_common::decide::Refusal;
use filter_common::layout::Sandbox;

use crate::skb::Skb;
use crate::verdict::{Outcome, Subject};

/// Lets the packet go on to whatever else is attached, and then up the stack.
const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

/// What the sandbox sends.
#[classifier]
pub fn from_sandbox(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    if control::is_injected(&skb) {
        return PASS;
    }
    // An interface that is not attached, or no longer: there is nobody to judge or to count for.
    let Some(sandbox) = sandboxes::on_interface(skb.ifindex()) else { return DROP };
    match verdict::from_sandbox(&skb, sandbox) {
        Outcome::Pass(reason) => pass(&skb, sandbox, reason),
        Outcome::Deny(reason, refusal) => {
            let Some(subject) = Subject::noted() else { return DROP };
            deny(&skb, sandbox, subject, reason);
            match refusal {
                Refusal::Silence => DROP,
                Refusal::Reset if throttle::may_refuse(sandbox.slot) => refuse::reset(&skb, subject),
                Refusal::Unreachable if throttle::may_refuse(sandbox.slot) => {
                    refuse::unreachable(&skb, subject)
                }
                Refusal::Reset | Refusal::Unreachable => DROP,
            }
        }
    }
}

/// What is sent to the sandbox.
#[classifier]
pub fn to_sandbox(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    // One of our own refusals on its way back, or a frame that userspace put here.
    if skb.ingress_ifindex() == skb.ifindex() || control::is_injected(&skb) {
        return PASS;
    }
    let Some(sandbox) = sandboxes::on_interface(skb.ifindex()) else { return DROP };
    match verdict::to_sandbox(&skb, sandbox) {
        Outcome::Pass(reason) => pass(&skb, sandbox, reason),
        // The outside is told nothing.
        Outcome::Deny(reason, Refusal::Silence | Refusal::Reset | Refusal::Unreachable) => {
            let Some(subject) = Subject::noted() else { return DROP };
            deny(&skb, sandbox, subject, reason);
            DROP
        }
    }
}

/// Goes through the connections of one sandbox.
#[classifier]
pub fn sweep(ctx: TcContext) -> i32 {
    sweep::run(&ctx)
}

/// Sends the frame that it is run on.
#[classifier]
pub fn inject(ctx: TcContext) -> i32 {
    inject::run(&ctx)
}

#[inline(always)]
fn pass(skb: &Skb, sandbox: &Sandbox, reason: Reason) -> i32 {
    counters::count(sandbox.slot, reason, skb.frame_len());
    PASS
}

#[inline(always)]
fn deny(skb: &Skb, sandbox: &Sandbox, subject: &Subject, reason: Reason) {
    counters::count(sandbox.slot, reason, skb.frame_len());
    if throttle::may_tell(sandbox.slot) {
        events::denied(skb, sandbox, subject, reason);
    }
}

/// The kernel offers most helpers to GPL programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// Nothing here panics: the verifier would refuse a program that could.
#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
