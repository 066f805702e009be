import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";

export const repository = new URL("../..", import.meta.url).pathname;

process.setMaxListeners(50); // two for each program

/** The folder for the output of programs and the screenshots of failed tests. */
export const failures = join(repository, "web/failures");

/**
 * Starts a program and waits until it prints a line that matches `ready`, on standard output or error.
 *
 * @param {string} command
 * @param {string[]} args
 * @param {{ ready: RegExp, env?: Record<string, string>, cwd?: string }} options
 * @returns {Promise<{ match: RegExpMatchArray, output: () => string, signal: (name: NodeJS.Signals) => void, stop: () => Promise<void> }>}
 */
export async function start(command, args, { ready, env = {}, cwd = repository }) {
  const child = spawn(command, args, { cwd, env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] });
  const die = () => child.kill("SIGKILL");
  process.once("exit", die); // if the test run is aborted
  const exited = once(child, "exit").then(([code, signal]) => {
    process.off("exit", die);
    return code ?? signal;
  });
  let output = "";
  process.once("exit", (status) => {
    if (status === 0) return;
    mkdirSync(failures, { recursive: true });
    writeFileSync(join(failures, `${basename(process.argv[1], ".test.js")}-${basename(command)}-${child.pid}.log`), output);
  });
  const match = await new Promise((resolve, reject) => {
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (text) => {
        output += text;
        const found = output.match(ready);
        if (found) resolve(found);
      });
    }
    child.once("error", reject);
    exited.then((code) => reject(new Error(`${command} ${args.join(" ")} ended with ${code} before it was ready:\n${output}`)), reject);
  });
  return {
    match,
    output: () => output,
    signal: (name) => void child.kill(name),
    async stop() {
      child.kill("SIGTERM");
      await exited;
    },
  };
}

/** Runs a program and waits until it exits. @param {string} command @param {string[]} args */
async function run(command, args) {
  const child = spawn(command, args, { cwd: repository, stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding("utf8").on("data", (text) => (output += text));
  const [code] = await once(child, "exit");
  if (code !== 0) throw new Error(`${command} ${args.join(" ")} ended with ${code}:\n${output}`);
}

/** @type {Map<string, Promise<string>>} */
const built = new Map();

/** Builds a Go program of this repository, once. @param {string} path @returns {Promise<string>} the binary's path */
export function build(path) {
  if (!built.has(path)) built.set(path, buildNow(path));
  return built.get(path);
}

/** @param {string} path */
async function buildNow(path) {
  const directory = await mkdtemp(join(tmpdir(), "cloakroom-"));
  process.once("exit", () => rmSync(directory, { recursive: true, force: true }));
  const binary = join(directory, basename(path));
  await run("go", ["build", "-o", binary, path]);
  return binary;
}

/** Returns the path of the broker's binary: $CLOAKROOM, or one that it builds. */
export const cloakroom = async () => process.env.CLOAKROOM ?? build("./cmd/cloakroom");

/**
 * Returns a free TCP port of 127.0.0.1. No connection takes it before it is used: those have ports above 32767.
 *
 * @returns {Promise<number>}
 */
export async function freePort() {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 12_000);
    const server = createServer().listen(port, "127.0.0.1");
    try {
      await once(server, "listening");
    } catch (err) {
      if (err.code !== "EADDRINUSE") throw err;
      continue;
    }
    server.close();
    await once(server, "close");
    return port;
  }
}
