import "../../plain/app.css";

export const metadata = { title: "Next.js export" };

export default function Layout({ children }) {
  return (
    <html lang="en">
      <body>{children}</body>
    </html>
  );
}
