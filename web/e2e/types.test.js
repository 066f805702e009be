import assert from "node:assert/strict";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { describe, test } from "node:test";

const here = new URL(".", import.meta.url).pathname;
const tsc = join(here, "node_modules/.bin/tsc");

/** Checks the types of a TypeScript project. @param {string} project */
function check(project) {
  const { status, stdout, stderr, error } = spawnSync(tsc, ["-p", project], { encoding: "utf8" });
  assert.ifError(error);
  return { ok: status === 0, output: stdout + stderr };
}

describe("the client's types", () => {
  test("match the client and compile as documented", () => {
    const { ok, output } = check(join(here, "types"));
    assert.ok(ok, output);
  });

  test("a difference between types and client is detected", async () => {
    const copy = await mkdtemp(join(here, "types-"));
    try {
      await cp(join(here, "../client/client.d.ts"), join(copy, "client/client.d.ts"));
      const client = await readFile(join(here, "../client/client.js"), "utf8");
      const wrong = client.replace("    session: (fresh) => session(fresh),\n", "    session: () => 1,\n");
      assert.notEqual(wrong, client);
      await writeFile(join(copy, "client/client.js"), wrong);
      await writeFile(
        join(copy, "tsconfig.json"),
        JSON.stringify({ extends: "../types/tsconfig.json", compilerOptions: { rootDir: "." }, files: ["client/client.js"] }),
      );
      const { ok, output } = check(copy);
      assert.equal(ok, false);
      assert.match(output, /client\.js.*Type 'number' is not assignable/s);
    } finally {
      await rm(copy, { recursive: true });
    }
  });
});
