import { spawn } from "node:child_process";
import { createSocket } from "node:dgram";
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
  const closed = once(child, "close"); // later: all output was read
  closed.catch(() => {}); // exited reports it
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
      await closed;
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
 * Returns a free TCP port of 127.0.0.1, for this process until it exits. No connection takes it before it is used: those
 * have ports above 32767.
 *
 * @param {number} [count] of ports that follow each other, of which it returns the first
 * @returns {Promise<number>}
 */
export async function freePort(count = 1) {
  for (;;) {
    const first = 20_000 + Math.floor(Math.random() * 12_000);
    const ports = Array.from({ length: count }, (_, i) => first + i);
    if ((await Promise.all(ports.map(reserve))).every(Boolean)) return first;
  }
}

/**
 * Reports whether a TCP port is free and no test has reserved it. Then it reserves the port: by a socket on the UDP port
 * of the same number, which stays open.
 *
 * @param {number} port
 */
async function reserve(port) {
  const server = createServer();
  const socket = createSocket("udp4").unref();
  try {
    socket.bind(port, "127.0.0.1");
    await once(socket, "listening");
    server.listen(port, "127.0.0.1");
    await once(server, "listening");
  } catch (err) {
    if (err.code !== "EADDRINUSE") throw err;
    return false;
  }
  server.close();
  await once(server, "close");
  return true;
}
