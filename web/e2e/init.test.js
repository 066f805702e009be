// What `cloakroom init` writes, used by real tools.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtemp, readFile, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";

import { cloakroom, freePort, repository, start } from "./process.js";

const here = join(repository, "web/e2e");
const answers = ["--issuer", "https://id.example.com", "--client-id", "spa", "--public-url", "https://app.example.com", "--api", "/api=http://localhost:3000"];

/** Runs a program. @param {string} command @param {string[]} args @param {string} cwd */
function run(command, args, cwd) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd, encoding: "utf8" });
  assert.ifError(error);
  return { status, output: stdout + stderr };
}

describe("cloakroom init", { timeout: 120_000 }, () => {
  test("its proxy settings have types in vite.config.ts", async () => {
    const program = await cloakroom();
    const dir = await mkdtemp(join(here, "types-init-")); // below node_modules of the tools
    try {
      for (const [name, text] of Object.entries({
        "package.json": `{ "private": true, "type": "module", "devDependencies": { "vite": "8", "typescript": "7" } }`,
        "vite.config.ts": `import { defineConfig } from "vite";
import { proxy } from "./cloakroom.proxy.mjs";

const target: string | undefined = proxy["/bff/"]?.target;
export default defineConfig({ server: { proxy }, define: { target: JSON.stringify(target) } });
`,
        "index.html": `<!doctype html><title>App</title>`,
        // As the template react-ts has it.
        "tsconfig.json": JSON.stringify({
          compilerOptions: {
            target: "es2023",
            lib: ["ES2023"],
            module: "esnext",
            moduleResolution: "bundler",
            allowImportingTsExtensions: true,
            verbatimModuleSyntax: true,
            moduleDetection: "force",
            types: [],
            skipLibCheck: true,
            noEmit: true,
            strict: true,
            noUncheckedSideEffectImports: true,
          },
          include: ["vite.config.ts"],
        }),
      })) {
        await writeFile(join(dir, name), text);
      }
      const written = run(program, ["init", ...answers], dir);
      assert.equal(written.status, 0, written.output);
      const checked = run(join(here, "node_modules/.bin/tsc"), ["-p", "."], dir);
      assert.equal(checked.status, 0, checked.output);
      const built = run(join(here, "node_modules/.bin/vite"), ["build"], dir);
      assert.equal(built.status, 0, built.output);
    } finally {
      await rm(dir, { recursive: true });
    }
  });

  test("Vite with --host serves none of its secrets", async () => {
    const program = await cloakroom();
    const dir = await realpath(await mkdtemp(join(tmpdir(), "init-")));
    let vite;
    try {
      await writeFile(join(dir, "package.json"), `{ "private": true, "devDependencies": { "vite": "8" } }`);
      await writeFile(join(dir, "index.html"), "<!doctype html><title>App</title>");
      const written = run(program, ["init", ...answers], dir);
      assert.equal(written.status, 0, written.output);
      const configuration = await readFile(join(dir, "cloakroom.yaml"), "utf8");
      const names = Array.from(configuration.matchAll(/^ *\w+_file: (.+)$/gm), ([, name]) => name);
      assert.equal(names.length, 2, configuration);
      for (const name of names) await writeFile(join(dir, name), "a secret");
      await writeFile(join(dir, "served.txt"), "a secret"); // the requests below do find files
      const port = await freePort();
      vite = await start(process.execPath, [join(here, "node_modules/vite/bin/vite.js"), dir, "--host", "--port", `${port}`, "--strictPort"], { ready: /ready in/ });
      for (const name of ["served.txt", ...names]) {
        for (const path of [`/${name}`, `/@fs${dir}/${name}`]) {
          for (const query of ["", "?raw", "?import", "?import&raw", "?import&raw??", "?inline", "?url", "?v=1", "?.svg?.wasm?init"]) {
            const response = await fetch(`http://127.0.0.1:${port}${path}${query}`);
            const text = await response.text();
            const served = text.includes("a secret") || text.includes(Buffer.from("a secret").toString("base64"));
            if (name !== "served.txt") assert.equal(served, false, `${path}${query}: ${text}`);
            else if (query === "") assert.equal(served, true, `${path}: ${text}`);
          }
        }
      }
    } finally {
      await vite?.stop();
      await rm(dir, { recursive: true });
    }
  });
});
