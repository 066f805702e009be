// The packages are packed, installed from their tarballs in a new folder, and run.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmodSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

const here = new URL(".", import.meta.url).pathname;
const platform = `${process.platform}-${process.arch}`;

function run(command, args, options = {}) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: "utf8", ...options });
  assert.ifError(error);
  return { status, stdout, output: stdout + stderr };
}

describe("the npm packages", { timeout: 300_000 }, () => {
  const folder = mkdtempSync(join(tmpdir(), "cloakroom-npm-test-"));
  const [dist, out, app] = ["dist", "out", "app"].map((name) => join(folder, name));
  const pack = (version, from = dist) => run(process.execPath, [join(here, "pack.js"), version, from, out]);
  const tarball = (name) => join(out, `cloakroom-bff-${name}-1.2.3.tgz`);
  const install = (names, ...options) => run("npm", ["install", "--offline", "--no-audit", "--no-fund", "--loglevel=error", ...options, ...names.map(tarball)], { cwd: app });

  before(() => {
    // The program of this platform, and files in the place of the others.
    for (const directory of ["linux_amd64_v1", "linux_arm64_v8.0", "darwin_amd64_v1", "darwin_arm64_v8.0"]) {
      mkdirSync(join(dist, `cloakroom_${directory}`), { recursive: true });
      writeFileSync(join(dist, `cloakroom_${directory}`, "cloakroom"), "#!/bin/sh\nexit 9\n");
    }
    const arch = { x64: "amd64_v1", arm64: "arm64_v8.0" }[process.arch];
    const program = join(dist, `cloakroom_${process.platform}_${arch}`, "cloakroom");
    rmSync(program); // go build overwrites programs only
    if (process.env.CLOAKROOM) copyFileSync(process.env.CLOAKROOM, program);
    else assert.equal(run("go", ["build", "-o", program, "./cmd/cloakroom"], { cwd: join(here, "../..") }).status, 0);
    chmodSync(program, 0o644); // archives may lose the mode
    const { status, output } = pack("1.2.3");
    assert.equal(status, 0, output);
    mkdirSync(app);
    writeFileSync(join(app, "package.json"), "{}");
  });
  after(() => rmSync(folder, { recursive: true }));

  test("there is one for each platform, the launcher and the client", () => {
    const names = ["client", "cloakroom", ...["darwin-arm64", "darwin-x64", "linux-arm64", "linux-x64"].map((name) => `cloakroom-${name}`)];
    assert.deepEqual(readdirSync(out).sort(), names.map((name) => `cloakroom-bff-${name}-1.2.3.tgz`).sort());
    const list = run("tar", ["-tzf", tarball("client")]).stdout;
    assert.match(list, /package\/client\.d\.ts\n/);
    assert.match(list, /package\/LICENSE\n/);
    assert.doesNotMatch(list, /test\.js/);
  });

  test("without the platform's package the launcher names it", () => {
    const { status, output } = install(["cloakroom"], "--omit=optional");
    assert.equal(status, 0, output);
    const version = run("npx", ["--offline", "cloakroom", "version"], { cwd: app });
    assert.equal(version.status, 1, version.output);
    assert.match(version.output, new RegExp(`@cloakroom-bff/cloakroom-${platform} is not installed`));
  });

  test("on Windows the launcher says to use WSL", () => {
    const windows = `data:text/javascript,Object.defineProperty(process, "platform", { value: "win32" })`;
    const { status, output } = run(process.execPath, ["--import", windows, join(here, "launcher.js"), "version"]);
    assert.equal(status, 1, output);
    assert.match(output, /no program for Windows\. Run it in WSL/);
  });

  test("npx runs the program and passes its exit status on", () => {
    const { status, output } = install(["cloakroom", `cloakroom-${platform}`, "client"], "--foreground-scripts");
    assert.equal(status, 0, output);
    const version = run("npx", ["--offline", "cloakroom", "version"], { cwd: app });
    assert.equal(version.status, 0, version.output);
    assert.match(version.stdout, /^cloakroom .*, commit .*go1\./);
    const unknown = run("npx", ["--offline", "cloakroom", "unknown"], { cwd: app });
    assert.equal(unknown.status, 2, unknown.output);
    assert.ok(existsSync(join(app, "node_modules/@cloakroom-bff/client/client.js")));
  });

  test("a package of another platform is refused", () => {
    const other = process.platform === "linux" ? "darwin-arm64" : "linux-arm64";
    const { status, output } = install([`cloakroom-${other}`]);
    assert.notEqual(status, 0);
    assert.match(output, /EBADPLATFORM/);
  });

  test("the launcher passes SIGTERM on and ends as the program does", async () => {
    const launcher = join(app, "node_modules/.bin/cloakroom");
    const child = spawn(launcher, ["demo", "--listen", "127.0.0.1:0"], { stdio: ["ignore", "pipe", "pipe"] });
    let output = "";
    await new Promise((resolve, reject) => {
      for (const stream of [child.stdout, child.stderr]) {
        stream.on("data", (data) => {
          output += data;
          if (/http:\/\/localhost:\d+/.test(output)) resolve();
        });
      }
      child.once("exit", (code) => reject(new Error(`ended with ${code}:\n${output}`)));
    });
    child.removeAllListeners("exit");
    child.kill("SIGTERM");
    const [code, signal] = await once(child, "exit");
    assert.deepEqual([code, signal], [0, null], output);
  });

  test("a missing program is an error before anything is packed", () => {
    const empty = join(folder, "empty");
    mkdirSync(empty);
    const { status, output } = pack("1.2.3", empty);
    assert.equal(status, 1);
    assert.match(output, /want one directory with a program for linux_amd64, found 0/);
    assert.equal(pack("v1").status, 2);
  });
});
