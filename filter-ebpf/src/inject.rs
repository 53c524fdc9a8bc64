//! Puts the frame that userspace runs this program on onto an interface, in either direction. This is how
//! the ends of a cut connection are told.

use aya_ebpf::{helpers::bpf_clone_redirect, programs::TcContext};

use crate::skb::Skb;

/// Control field 0: the interface. Control field 1: `BPF_F_INGRESS` as if the sandbox had sent it, or 0.
pub fn run(ctx: &TcContext) -> i32 {
    let skb = Skb::new(ctx);
    let (ifindex, flags) = (skb.control(0), skb.control(1));
    // SAFETY: the helper checks interface and flags.
    unsafe { bpf_clone_redirect(skb.raw().cast(), ifindex, u64::from(flags)) as i32 }
}
