//! The sessions of README: their commands give what they show.

use crate::harness::{BINARY, Place};
use std::fs;
use std::process::Command;

impl Place {
    /// Runs a session of README, in which each text of `actual` stands for what follows it here.
    pub fn session(&self, name: &str, actual: &[(&str, &str)]) {
        let readme = include_str!("../../README.md");
        let begin = format!("<!-- session: {name} -->\n```console\n");
        let session = readme.split(&begin).nth(1).unwrap();
        let session = session.split("```").next().unwrap();
        let (mut commands, mut expected) = (String::new(), String::new());
        for line in session.lines() {
            match line.strip_prefix("$ ") {
                Some(command) => commands += &format!("{command}\n"),
                None => expected += &format!("{line}\n"),
            }
        }
        assert!(commands.lines().count() >= 5);
        let dir = self.path("m");
        fs::create_dir(&dir).unwrap();
        let here = |text: String| {
            let text = actual
                .iter()
                .fold(text, |text, (shown, actual)| text.replace(shown, actual));
            text.replace("DIR", dir.to_str().unwrap())
                .replace("bucketfs ", &format!("{BINARY} "))
        };
        // What it makes without saying where is made here.
        let cwd = self.path("elsewhere");
        fs::create_dir(&cwd).unwrap();
        let mut shell = Command::new("bash");
        self.settle(&mut shell);
        shell.current_dir(&cwd);
        let said = self.run(shell.args(["-ec", &here(commands)]));
        assert_eq!(
            (said.code, said.stdout.as_str()),
            (Some(0), here(expected).as_str()),
            "{said:?}"
        );
    }
}
