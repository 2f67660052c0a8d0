// What is wrong with a Dockerfile, and where: for the one who wrote it.

export class DockerfileError extends Error {
  readonly line: number;
  readonly instruction: string | null;

  constructor(line: number, instruction: string | null, message: string) {
    super(message);
    this.name = 'DockerfileError';
    this.line = line;
    this.instruction = instruction;
  }
}
