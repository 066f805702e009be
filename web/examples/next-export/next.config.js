/** A static export: `next build` writes it to out/. @type {import("next").NextConfig} */
export default {
  output: "export",
  turbopack: { root: new URL("..", import.meta.url).pathname }, // the examples share a style sheet
};
