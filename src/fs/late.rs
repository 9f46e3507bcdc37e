//! What the kernel is told when an operation ends that nobody waits for any more: its requester was
//! killed and let go, and the kernel has gone on with what it knew, or has asked again too early.

use super::Fs;

impl Fs {
    /// Has the kernel ask again for attributes and bytes.
    pub fn forget_pages(&self, inodes: [u64; 2]) {
        for inode in inodes {
            self.notify.invalidate_inode(inode, false);
        }
    }

    /// Has the kernel ask again what names stand for, and for the attributes of their directories. Two
    /// names are those of a rename: until it has heard that, the kernel can go by the one to what has
    /// the other by now.
    pub fn forget_entries(&self, names: &[(u64, Vec<u8>)]) {
        for (directory, name) in names {
            let child = self.table.get(*directory).and_then(|it| it.child(name));
            if let Some(child) = child.filter(|_| names.len() > 1) {
                child.state().away = true;
            }
            self.notify.invalidate_entry(*directory, name);
            self.notify.invalidate_inode(*directory, true);
        }
    }
}
