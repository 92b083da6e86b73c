//! A certificate authority of a test's own: whom servers and clients trust, and what they show each other.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::house::run;

/// The authority; its files are in a folder of the test's.
pub struct Authority {
    folder: PathBuf,
}

/// A certificate and its key.
pub struct Signed {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

const NEW: [&str; 6] = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

impl Authority {
    /// Makes one whose files go into `folder`, which is made.
    pub fn new(folder: PathBuf) -> Self {
        std::fs::create_dir_all(&folder).expect("a folder");
        let authority = Self { folder };
        let (key, certificate) = (authority.path("ca.key"), authority.certificate());
        let files = ["-keyout", text(&key), "-out", text(&certificate)];
        openssl(&[&NEW[..], &["-x509", "-subj", "/CN=authority", "-days", "2"], &files].concat());
        authority
    }

    /// The authority's own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.path("ca.pem")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Signs a certificate; `extension` is a line such as `subjectAltName = IP:127.0.0.1`.
    pub fn sign(&self, name: &str, extension: &str) -> Signed {
        self.sign_until(name, extension, &["-days", "2"])
    }

    /// Signs one that is of the past.
    pub fn sign_expired(&self, name: &str, extension: &str) -> Signed {
        self.sign_until(name, extension, &["-days", "-1"])
    }

    fn sign_until(&self, name: &str, extension: &str, life: &[&str]) -> Signed {
        let file = |kind: &str| self.path(&format!("{name}.{kind}"));
        let (certificate, key, request, lines) = (file("pem"), file("key"), file("request"), file("extension"));
        std::fs::write(&lines, format!("{extension}\n")).expect("written");
        let subject = format!("/CN={name}");
        openssl(&[&NEW[..], &["-subj", &subject, "-keyout", text(&key), "-out", text(&request)]].concat());
        let (ca, ca_key) = (self.certificate(), self.path("ca.key"));
        let authority = ["-CA", text(&ca), "-CAkey", text(&ca_key), "-CAcreateserial"];
        let files = ["-in", text(&request), "-extfile", text(&lines), "-out", text(&certificate)];
        openssl(&[&["x509", "-req"], &files[..], &authority, life].concat());
        Signed { certificate, key }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn openssl(arguments: &[&str]) {
    let mut command = Command::new("openssl");
    command.args(arguments);
    run(command).ok();
}
