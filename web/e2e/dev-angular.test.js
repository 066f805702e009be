// Beside dev.test.js, so that both can run at once. Angular is that of the example, which make examples installs.
import { mkdtemp } from "node:fs/promises";
import { join } from "node:path";

import { developing } from "./dev.js";
import { repository } from "./process.js";

const example = join(repository, "web/examples/angular");

/** The workspace. @param {{ baseHref?: string }} [options] */
const workspace = (options) =>
  JSON.stringify({
    version: 1,
    cli: { analytics: false },
    projects: {
      app: {
        projectType: "application",
        root: "",
        sourceRoot: "src",
        architect: {
          build: {
            builder: "@angular/build:application",
            options: { browser: "src/main.ts", index: "src/index.html", tsConfig: "tsconfig.json", optimization: false, ...options },
          },
          serve: { builder: "@angular/build:dev-server", options: { buildTarget: "app:build" } },
        },
      },
    },
  });

const angular = {
  dir: () => mkdtemp(join(example, ".dev-")),
  files: {
    "angular.json": workspace(),
    "package.json": `{ "private": true }`,
    "tsconfig.json": `{
  "compilerOptions": { "target": "ES2022", "module": "preserve", "strict": true, "skipLibCheck": true, "importHelpers": true, "types": [] },
  "files": ["src/main.ts"]
}`,
    "src/index.html": `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>App</title><base href="/"></head><body><app-root></app-root></body></html>`,
    "src/app.html": "<p>first</p>",
    "src/app.ts": `import { Component } from "@angular/core";
@Component({ selector: "app-root", templateUrl: "./app.html" })
export class App {}`,
    "src/main.ts": `import { provideZonelessChangeDetection } from "@angular/core";
import { bootstrapApplication } from "@angular/platform-browser";
import { App } from "./app";
bootstrapApplication(App, { providers: [provideZonelessChangeDetection()] });`,
  },
  command: (port) => [process.execPath, join(example, "node_modules/@angular/cli/bin/ng.js"), "serve", "--port", `${port}`],
  message: "src/app.html",
};
developing("Angular", angular);
developing("Angular below a path", {
  ...angular,
  files: { ...angular.files, "angular.json": workspace({ baseHref: "/shop/" }) },
  base: "/shop",
});
