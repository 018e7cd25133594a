//! Machines of their own, as far as the network is concerned: a namespace and an address per node, joined by a switch, so that a
//! node can be cut off. Needs root and the `ip` program.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Runs `ip` and returns what it printed on failure.
fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// The switch, in a namespace of its own (where no firewall rules of this machine apply), and this process's link to it.
#[derive(Debug)]
struct Switch {
    space: String,
    uplink: String,
    subnet: [u8; 3],
}

impl Switch {
    fn create() -> Result<Self, String> {
        let id = fastrand::u32(0x1000..0xffff);
        let subnet = [10, fastrand::u8(100..200), fastrand::u8(..)];
        let switch = Self { space: format!("lft-{id:x}"), uplink: format!("lft{id:x}"), subnet };
        let (space, uplink) = (switch.space.as_str(), switch.uplink.as_str());
        ip(&["netns", "add", space])?;
        ip(&["-n", space, "link", "add", "bridge", "type", "bridge"])?;
        ip(&["-n", space, "link", "set", "bridge", "up"])?;
        ip(&["link", "add", uplink, "type", "veth", "peer", "name", "uplink", "netns", space])?;
        ip(&["-n", space, "link", "set", "uplink", "master", "bridge", "up"])?;
        ip(&["address", "add", &format!("{}/24", switch.address(254)), "dev", uplink])?;
        ip(&["link", "set", uplink, "up"])?;
        Ok(switch)
    }

    fn address(&self, number: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, number)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = ip(&["link", "delete", &self.uplink]);
        let _ = ip(&["netns", "delete", &self.space]);
    }
}

/// A network of its own.
#[derive(Debug)]
pub struct Network {
    switch: Arc<Switch>,
}

impl Network {
    /// Creates it, without hosts.
    ///
    /// # Panics
    /// When this process may not, or `ip` is missing.
    #[must_use]
    pub fn create() -> Self {
        // Another test may have picked the same numbers.
        let mut last = String::new();
        for _ in 0..10 {
            match Switch::create() {
                Ok(switch) => return Self { switch: Arc::new(switch) },
                Err(error) => last = error,
            }
        }
        panic!("create a network: {last}")
    }

    /// The address of this process in it.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.switch.address(254)
    }

    /// A host with an address in it.
    ///
    /// # Panics
    /// When it cannot be created.
    #[must_use]
    pub fn host(&self, number: u8) -> Arc<Host> {
        let switch = self.switch.clone();
        let (space, link) = (format!("{}-{number}", switch.space), format!("h{number}"));
        let host = Host { space, link, address: switch.address(number), switch };
        host.create().expect("create a host");
        Arc::new(host)
    }

    /// Cuts this process, and what it runs outside of namespaces, off from every host.
    ///
    /// # Panics
    /// When `ip` fails.
    pub fn cut(&self) {
        ip(&["-n", &self.switch.space, "link", "set", "uplink", "down"]).expect("cut");
    }

    /// Undoes [`Self::cut`].
    ///
    /// # Panics
    /// When `ip` fails.
    pub fn mend(&self) {
        ip(&["-n", &self.switch.space, "link", "set", "uplink", "up"]).expect("mend");
    }
}

/// A network namespace with one address.
#[derive(Debug)]
pub struct Host {
    space: String,
    link: String,
    address: Ipv4Addr,
    switch: Arc<Switch>,
}

impl Host {
    fn create(&self) -> Result<(), String> {
        let (space, switch) = (self.space.as_str(), self.switch.space.as_str());
        ip(&["netns", "add", space])?;
        ip(&["-n", switch, "link", "add", &self.link, "type", "veth", "peer", "name", "eth0", "netns", space])?;
        ip(&["-n", switch, "link", "set", &self.link, "master", "bridge", "up"])?;
        ip(&["-n", space, "address", "add", &format!("{}/24", self.address), "dev", "eth0"])?;
        ip(&["-n", space, "link", "set", "lo", "up"])?;
        ip(&["-n", space, "link", "set", "eth0", "up"])
    }

    /// Its address.
    #[must_use]
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Takes its cable out.
    ///
    /// # Panics
    /// When `ip` fails.
    pub fn cut(&self) {
        ip(&["-n", &self.switch.space, "link", "set", &self.link, "down"]).expect("cut");
    }

    /// Plugs it in again.
    ///
    /// # Panics
    /// When `ip` fails.
    pub fn mend(&self) {
        ip(&["-n", &self.switch.space, "link", "set", &self.link, "up"]).expect("mend");
    }

    /// Makes a command run on this host. (`ip netns exec` would give it its own mounts as well.)
    ///
    /// # Panics
    /// When the namespace is gone.
    pub fn run_here(&self, command: &mut Command) {
        let space = File::open(format!("/run/netns/{}", self.space)).expect("open the namespace");
        // SAFETY: one system call between fork and exec, on a descriptor that the closure owns.
        unsafe {
            command.pre_exec(move || match libc::setns(space.as_raw_fd(), libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = ip(&["netns", "delete", &self.space]);
    }
}
