// What `cloakroom init` writes, used by real tools.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, test } from "node:test";

import { cloakroom, repository } from "./process.js";

const here = join(repository, "web/e2e");

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
      const answers = ["--issuer", "https://id.example.com", "--client-id", "spa", "--public-url", "https://app.example.com", "--api", "/api=http://localhost:3000"];
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
});
