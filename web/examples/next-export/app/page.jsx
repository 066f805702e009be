import Link from "next/link";

/** A public page. Nothing on it needs a session. */
export default function Home() {
  return (
    <main>
      <h1>Home</h1>
      <p>
        <Link href="/orders">Your orders</Link> · <Link href="/about">About</Link>
      </p>
    </main>
  );
}
