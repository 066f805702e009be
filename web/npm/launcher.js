#!/usr/bin/env node
// Runs the program in the package of this platform, which npm has installed beside
// this one.
import { spawn } from "node:child_process";
import { createRequire } from "node:module";

if (process.platform === "win32") {
  console.error("cloakroom: there is no program for Windows. Run it in WSL, beside your app: https://learn.microsoft.com/windows/wsl/install");
  process.exit(1);
}
const name = `@cloakroom-bff/cloakroom-${process.platform}-${process.arch}`;
let program;
try {
  program = createRequire(import.meta.url).resolve(`${name}/bin/cloakroom`);
} catch {
  console.error(`cloakroom: ${name} is not installed. Either there is no program for this platform, or npm ran with --omit=optional.`);
  process.exit(1);
}
const child = spawn(program, process.argv.slice(2), { stdio: "inherit" });
// A terminal sends Ctrl-C to the program too. A second one would end it at once.
process.on("SIGINT", () => {});
for (const signal of ["SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
child.on("error", (err) => {
  console.error(`cloakroom: ${err.message}`);
  process.exit(1);
});
child.on("exit", (code, signal) => {
  if (signal === null) process.exit(code);
  process.removeAllListeners(signal);
  process.kill(process.pid, signal);
});
