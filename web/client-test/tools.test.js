// The package in the tools of an app: TypeScript and Vite. Vitest runs the tests in units/.
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { brotliDecompressSync, gunzipSync, gzipSync } from "node:zlib";

import { freePort, start } from "../e2e/process.js";

const here = new URL(".", import.meta.url).pathname;
const bin = (name) => join(here, "node_modules/.bin", name);

/** Runs a program and returns its output, colors removed. */
function run(command, args, cwd = here) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { cwd, encoding: "utf8" });
  assert.ifError(error);
  return { ok: status === 0, output: (stdout + stderr).replaceAll(/\x1b\[[\d;]*m/g, "") };
}

test("the core is smaller than 3 KB", () => {
  const dir = mkdtempSync(join(here, "size-"));
  try {
    // All exports, as Vite builds them for an app.
    writeFileSync(join(dir, "vite.config.js"), `export default { build: { rolldownOptions: { input: "@cloakroom-bff/client", preserveEntrySignatures: "strict", output: { entryFileNames: "core.js" } }, modulePreload: false } };`);
    execFileSync(bin("vite"), ["build", "--logLevel", "warn"], { cwd: dir });
    const code = readFileSync(join(dir, "dist/core.js"));
    const size = gzipSync(code, { level: 9 }).length;
    assert.ok(size < 3 * 1024, `got ${size} bytes with gzip, want fewer than 3072`);
    assert.match(code.toString(), /ProblemError/);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test("the types match the files of the package", () => {
  const { ok, output } = run(bin("tsc"), ["-p", "types/tsconfig.sources.json"]);
  assert.ok(ok, output);
});

test("an app that imports everything compiles", () => {
  const { ok, output } = run(bin("tsc"), ["-p", "types"]);
  assert.ok(ok, output);
});

test("a server imports every file and touches no browser", () => {
  const files = ["", "/react", "/vue", "/svelte", "/angular", "/tanstack", "/notice", "/vite", "/testing"];
  const code = [
    'import "@angular/compiler";',
    ...files.map((file, i) => `import * as m${i} from "@cloakroom-bff/client${file}";`),
    'const client = m0.createClient(); await client.session().catch(() => {}); console.log(client.state.status);',
  ].join("\n");
  const { ok, output } = run(process.execPath, ["--input-type=module", "--eval", code]);
  assert.ok(ok, output);
  assert.equal(output, "loading\n");
});

test("Jest can load every file: none uses import.meta", () => {
  const dir = join(here, "node_modules/@cloakroom-bff/client");
  for (const name of readdirSync(dir).filter((name) => name.endsWith(".js"))) {
    const code = readFileSync(join(dir, name), "utf8").replaceAll(/^\s*\/\/.*$/gm, "");
    assert.doesNotMatch(code, /import\.meta/, name);
  }
});

test("a server renders an app of Angular, without a session", () => {
  const code = `
import "@angular/compiler";
import { createEnvironmentInjector, Injector, runInInjectionContext } from "@angular/core";
import { HttpRequest } from "@angular/common/http";
import { createClient } from "@cloakroom-bff/client";
import { cloakroomInterceptor, provideCloakroom, requireSession } from "@cloakroom-bff/client/angular";

const injector = createEnvironmentInjector([provideCloakroom(createClient())], Injector.NULL);
const request = new HttpRequest("GET", "https://cms.example.com/texts");
const sent = runInInjectionContext(injector, () => cloakroomInterceptor(request, (sent) => sent));
const allowed = await runInInjectionContext(injector, () => requireSession({}, { url: "/orders" }));
console.log(sent === request, allowed);`;
  const { ok, output } = run(process.execPath, ["--input-type=module", "--eval", code]);
  assert.ok(ok, output);
  assert.equal(output, "true false\n");
});

describe("an app of Vite and TypeScript with the README's import", { timeout: 120_000 }, () => {
  let dir;
  before(() => {
    dir = mkdtempSync(join(here, "app-"));
    cpSync(join(here, "app/index.html"), join(dir, "index.html"));
    const html = readFileSync(join(dir, "index.html"), "utf8").replace("/react.js", "/main.ts");
    writeFileSync(
      join(dir, "index.html"),
      html.replace("<main>", '<img src="https://images.example.com/a.png" alt=""><main>').replace("</head>", '<link rel="stylesheet" href="/style.css"></head>'),
    );
    writeFileSync(join(dir, "style.css"), `@font-face { font-family: F; src: url("https://fonts.example.com/f.woff2"); }\np { font-family: F; }\n`);
    writeFileSync(
      join(dir, "main.ts"),
      `import { createClient } from "@cloakroom-bff/client";

const bff = createClient();
const { authenticated, user } = await bff.session();
if (!authenticated) bff.login();
fetch("https://errors.example.com/report");
console.log(user?.name, await WebAssembly.instantiate(new Uint8Array()));
`,
    );
    writeFileSync(join(dir, "tsconfig.json"), JSON.stringify({ compilerOptions: { target: "es2022", module: "esnext", moduleResolution: "bundler", lib: ["es2022", "dom"], types: [], strict: true, noEmit: true }, files: ["main.ts"] }));
    mkdirSync(join(dir, "public"));
    writeFileSync(join(dir, "public/data.json"), JSON.stringify(Array(1000).fill("text")));
    writeFileSync(join(dir, "public/sw.js"), "registerRoute(new NavigationRoute(createHandlerBoundToURL('index.html')));");
    writeFileSync(join(dir, "public/own-sw.js"), "addEventListener('fetch', (event) => event.respondWith(caches.match('/index.html')));");
    writeFileSync(join(dir, "public/templates.js"), "const templates = [() => fetch('https://%s/orders'), () => fetch('https://:80/')];");
    writeFileSync(join(dir, "public/templates.css"), "p { background: url(https://%HOST%/x.png) }");
    writeFileSync(join(dir, "public/good-sw.js"), "addEventListener('fetch', (event) => { if (!event.request.url.includes('/bff/')) event.respondWith(fetch(event.request)); });");
    writeFileSync(
      join(dir, "vite.config.js"),
      `import { cloakroom } from "@cloakroom-bff/client/vite";
export default { plugins: [cloakroom({ broker: process.env.BROKER, routes: ["/api/"] })], clearScreen: false, cacheDir: ".vite", build: { target: "es2022" } };`, // that of the package is used by the browser test
    );
  });
  after(() => rmSync(dir, { recursive: true }));

  test("tsc accepts it", () => {
    const { ok, output } = run(bin("tsc"), ["-p", dir]);
    assert.ok(ok, output);
  });

  test("mistakes in the options of the plugin are errors", async () => {
    const { cloakroom } = await import("@cloakroom-bff/client/vite");
    assert.throws(() => cloakroom({ borker: "http://localhost:8080" }), /unknown option borker/);
    const warned = (server) => {
      const warnings = [];
      cloakroom({ routes: ["/api/"] }).configResolved({ server, logger: { warn: (text) => warnings.push(text) } });
      return warnings;
    };
    const rules = { "^/api/": {}, "/other": {}, "/api/old/": {}, "/api": {}, "^/b": {} };
    assert.deepEqual(warned({ proxy: rules }), [
      "cloakroom: server.proxy has a rule for /api, so requests to /api/ do not reach the broker: remove that rule",
      "cloakroom: server.proxy has a rule for ^/b, so requests to /bff/ do not reach the broker: remove that rule",
    ]);
    assert.deepEqual(warned({}), []);
    assert.throws(() => cloakroom({ routes: ["api"] }), /the path api does not begin with a slash/);
  });

  test("vite build bundles, compresses, and prints what is needed", () => {
    const { ok, output } = run(bin("vite"), ["build"], dir);
    assert.ok(ok, output);
    assert.match(output, /this build needs frontend\.csp: \{.*script-src: \["'wasm-unsafe-eval'"\]/);
    assert.match(output, /img-src: \["https:\/\/images\.example\.com"\]/);
    assert.match(output, /font-src: \["https:\/\/fonts\.example\.com"\]/);
    assert.match(output, /connect-src: \["https:\/\/errors\.example\.com"\]/);
    assert.match(output, /own-sw\.js responds to requests without a test for \/bff\//);
    assert.doesNotMatch(output, /good-sw\.js/);
    assert.match(output, /sw\.js handles navigations to \/bff\/.*navigateFallbackDenylist/);
    const plain = readFileSync(join(dir, "dist/data.json"));
    assert.deepEqual(brotliDecompressSync(readFileSync(join(dir, "dist/data.json.br"))), plain);
    assert.deepEqual(gunzipSync(readFileSync(join(dir, "dist/data.json.gz"))), plain);
  });

  test("vite dev serves it and forwards the broker's paths", async () => {
    const seen = [];
    const broker = createServer((request, response) => {
      seen.push(`${request.headers.host} ${request.url}`);
      response.end("from the broker");
    }).listen(0, "127.0.0.1");
    await new Promise((resolve) => broker.once("listening", resolve));
    const port = await freePort();
    const server = await start(process.execPath, [join(here, "node_modules/vite/bin/vite.js"), dir, "--host", "127.0.0.1", "--port", `${port}`, "--strictPort"], {
      ready: /ready in/,
      env: { BROKER: `http://127.0.0.1:${broker.address().port}` },
    });
    try {
      const get = async (path) => (await fetch(`http://127.0.0.1:${port}${path}`)).text();
      const main = await get("/main.ts");
      const [, module] = /from "(.*?client.*?)"/.exec(main);
      assert.match(await get(module), /createClient/);
      assert.equal(await get("/bff/session"), "from the broker");
      assert.equal(await get("/api/orders?x=1"), "from the broker");
      assert.match(await get("/bfforders"), /<main>/);
      assert.deepEqual(seen, [`127.0.0.1:${port} /bff/session`, `127.0.0.1:${port} /api/orders?x=1`]);
    } finally {
      await server.stop();
      broker.close();
      broker.closeAllConnections();
    }
  });
});
