//! `-o` options, as `mount(8)` and `/etc/fstab` hand them over.

use super::options::{self, OPTIONS, OptionSpec};
use crate::exit::Failure;

/// Flags that the kernel keeps for a mount. Later ones override earlier ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelFlags {
    /// Honour device files; root only.
    pub dev: bool,
    /// Honour set-user-id bits; root only.
    pub suid: bool,
    /// Refuse to execute programs.
    pub noexec: bool,
    /// Do not update access times.
    pub noatime: bool,
    /// Write synchronously.
    pub sync: bool,
    /// Change directories synchronously.
    pub dirsync: bool,
}

/// What a list of `-o` options says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Our own options with their values, in the order given.
    pub ours: Vec<(&'static str, String)>,
    /// The kernel's.
    pub kernel: KernelFlags,
}

/// Options of `fstab`, of mount(8) and of other FUSE filesystems that mean nothing here.
const IGNORED: &[&str] = &[
    "_netdev",
    "async",
    "atime",
    "auto",
    "bg",
    "default_permissions",
    "defaults",
    "diratime",
    "fg",
    "group",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noauto",
    "nodiratime",
    "nodirsync",
    "nofail",
    "nogroup",
    "noiversion",
    "nolazytime",
    "nomand",
    "noowner",
    "norelatime",
    "nostrictatime",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "silent",
    "strictatime",
    "symfollow",
    "user",
    "users",
];

/// Options of the kernel that mean something here.
const KERNEL: &[&str] = &[
    "dev", "dirsync", "exec", "noatime", "nodev", "noexec", "nosuid", "ro", "rw", "suid", "sync",
];

/// Reads the values of all `-o` flags, in order.
pub fn parse<'a>(lists: impl IntoIterator<Item = &'a str>) -> Result<MountOptions, Failure> {
    let mut found = MountOptions::default();
    for list in lists {
        for option in split(list) {
            one(&option, &mut found)?;
        }
    }
    Ok(found)
}

fn one(option: &str, found: &mut MountOptions) -> Result<(), Failure> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    if let Some(spec) = options::find(name) {
        found.ours.push((spec.name, own_value(spec, value)?));
        return Ok(());
    }
    let kernel = &mut found.kernel;
    match (name, value) {
        ("ro", None) => found.ours.push(("read-only", "true".into())),
        ("rw", None) => found.ours.push(("read-only", "false".into())),
        ("dev", None) => kernel.dev = true,
        ("nodev", None) => kernel.dev = false,
        ("suid", None) => kernel.suid = true,
        ("nosuid", None) => kernel.suid = false,
        ("exec", None) => kernel.noexec = false,
        ("noexec", None) => kernel.noexec = true,
        ("noatime", None) => kernel.noatime = true,
        ("atime" | "relatime" | "strictatime", None) => kernel.noatime = false,
        ("sync", None) => kernel.sync = true,
        ("async", None) => kernel.sync = false,
        ("dirsync", None) => kernel.dirsync = true,
        ("nodirsync", None) => kernel.dirsync = false,
        ("nosymfollow", None) => {
            return Err(Failure::usage(
                "the mount option nosymfollow is not supported: links would be followed; leave it away",
            ));
        }
        ("comment" | "user", Some(_)) => {}
        ("remount", None) => {
            return Err(Failure::usage(
                "a mount keeps its options: to change them, bucketfs umount it and mount it again",
            ));
        }
        _ if name.starts_with("x-") || name.starts_with("X-") => {}
        (_, None) if IGNORED.contains(&name) => {}
        (_, Some(_)) if IGNORED.contains(&name) || KERNEL.contains(&name) => {
            return Err(Failure::usage(format!(
                "the mount option {name} takes no value"
            )));
        }
        _ => return Err(unknown(name)),
    }
    Ok(())
}

fn own_value(spec: &OptionSpec, value: Option<&str>) -> Result<String, Failure> {
    match (spec.value, value) {
        (_, Some(value)) => Ok(value.to_owned()),
        (None, None) => Ok("true".into()),
        (Some(what), None) => Err(Failure::usage(format!(
            "-o {} needs a value: -o {}={what}",
            spec.name, spec.name
        ))),
    }
}

fn unknown(name: &str) -> Failure {
    let names = OPTIONS.iter().map(|option| option.name);
    let names = names
        .chain(KERNEL.iter().copied())
        .chain(IGNORED.iter().copied());
    let nearest = options::nearest(name, names).unwrap_or_default();
    Failure::usage(format!(
        "unknown mount option {name:?}; did you mean {nearest:?}?"
    ))
}

/// Splits at commas; `\,` is a comma and `\\` a backslash within a value.
fn split(list: &str) -> Vec<String> {
    let mut options = Vec::new();
    let mut option = String::new();
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next_if(|next| matches!(next, ',' | '\\')) {
                Some(escaped) => option.push(escaped),
                None => option.push(c),
            },
            ',' => options.push(std::mem::take(&mut option)),
            _ => option.push(c),
        }
    }
    options.push(option);
    options.retain(|option| !option.is_empty());
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(list: &str) -> Vec<(&'static str, String)> {
        parse([list]).expect(list).ours
    }

    #[test]
    fn long_flags_are_mount_options_with_either_dash() {
        assert_eq!(
            ours("metadata_ttl=5s,allow-other,cache-dir=/var/a\\,b"),
            [
                ("metadata-ttl", "5s".to_owned()),
                ("allow-other", "true".to_owned()),
                ("cache-dir", "/var/a,b".to_owned()),
            ]
        );
    }

    #[test]
    fn an_fstab_line_is_understood() {
        let options = parse([
            "rw,_netdev,noauto,user=joe,x-systemd.automount,comment=a=b,nofail,defaults,,ro",
            "dev,suid,nosuid,noexec,noatime,sync,async",
        ])
        .unwrap();
        assert_eq!(
            options.ours,
            [
                ("read-only", "false".to_owned()),
                ("read-only", "true".to_owned())
            ]
        );
        assert_eq!(
            options.kernel,
            KernelFlags {
                dev: true,
                noexec: true,
                noatime: true,
                ..KernelFlags::default()
            }
        );
    }

    #[test]
    fn every_plain_option_of_mount_is_known() {
        let list = "lazytime,strictatime,iversion,noiversion,loud,mand,nomand,silent,symfollow,dirsync,nodirsync";
        assert_eq!(parse([list]).unwrap(), MountOptions::default());
    }

    #[test]
    fn an_unknown_option_names_the_nearest() {
        for (list, message) in [
            (
                "readonly",
                "unknown mount option \"readonly\"; did you mean \"read-only\"?",
            ),
            (
                "noexce",
                "unknown mount option \"noexce\"; did you mean \"noexec\"?",
            ),
            ("prefix", "-o prefix needs a value: -o prefix=PREFIX"),
            (
                "remount,ro",
                "a mount keeps its options: to change them, bucketfs umount it and mount it again",
            ),
            ("ro=1", "the mount option ro takes no value"),
            (
                "nosymfollow",
                "the mount option nosymfollow is not supported: links would be followed; leave it away",
            ),
        ] {
            assert_eq!(parse([list]).unwrap_err().message, message);
        }
    }
}
